package org.gemmaedge.core.tools

import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import org.gemmaedge.core.chat.Tool
import org.gemmaedge.core.json.Json

/** What no model can know: the day and the time. */
class Clock(private val nowMs: () -> Long = System::currentTimeMillis, private val zone: () -> TimeZone = TimeZone::getDefault) : Tool {
    override val name = "current_time"
    override val description = Json.write(
        mapOf(
            "name" to name,
            "description" to "Tells the current date, time and day of the week.",
            "parameters" to mapOf("type" to "object", "properties" to emptyMap<String, Any>()),
        ),
    )

    /** "Saturday, 2026-11-28 13:05 +01:00". */
    override fun run(arguments: Json): String =
        SimpleDateFormat("EEEE, yyyy-MM-dd HH:mm XXX", Locale.ENGLISH).apply { timeZone = zone() }.format(Date(nowMs()))
}
