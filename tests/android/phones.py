"""Lines of `adb devices -l`."""

READY = "0A1B2C\tdevice usb:1-1 product:panther model:Pixel_7 device:panther transport_id:1\n"
OTHER = "emulator-5554\tdevice product:sdk model:sdk_phone transport_id:2\n"
