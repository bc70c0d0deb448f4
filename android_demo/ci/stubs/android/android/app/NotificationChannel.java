package android.app;

/** A signature of API 26, without behaviour; see ../../README.md. Never packaged. */
public final class NotificationChannel {
    public NotificationChannel(String id, CharSequence name, int importance) {
        throw new Error("a signature without behaviour");
    }
}
