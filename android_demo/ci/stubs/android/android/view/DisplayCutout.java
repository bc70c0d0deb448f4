package android.view;

/** Signatures of API 28, without behaviour; see ../../README.md. Never packaged. */
public final class DisplayCutout {
    private DisplayCutout() {}

    public native int getSafeInsetLeft();

    public native int getSafeInsetTop();

    public native int getSafeInsetRight();

    public native int getSafeInsetBottom();
}
