package org.gemmaedge.app

import android.app.Activity
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.Canvas
import android.view.View
import android.view.ViewGroup
import android.widget.EditText
import android.widget.ListView
import android.widget.Switch
import android.widget.TextView
import java.io.File
import org.gemmaedge.core.chat.ChatMessage
import org.gemmaedge.core.chat.ChatState
import org.gemmaedge.core.chat.GenerationStats
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.chat.ToolCall
import org.gemmaedge.core.share.Incoming
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.shadows.ShadowLooper

/**
 * The screens in a simulated Android, by `./gradlew :app:testDebugUnitTest`: each is drawn to build/screens, by day and
 * by night, in both languages, with large type, and on a tablet. What they show is decided and tested in core.
 */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [36], qualifiers = "w360dp-h760dp-xhdpi")
class ScreensTest {
    private val app get() = RuntimeEnvironment.getApplication() as DemoApplication
    private val looks = mapOf(
        "day" to "en-w360dp-h760dp-notnight-xhdpi",
        "night" to "en-w360dp-h760dp-night-xhdpi",
        "german" to "de-w360dp-h760dp-notnight-xhdpi",
        "landscape" to "en-w760dp-h360dp-land-notnight-xhdpi",
        "tablet" to "en-w1280dp-h800dp-land-notnight-mdpi",
    )

    private inline fun <reified T : Activity> shown(intent: Intent? = null, action: (T) -> Unit) {
        Robolectric.buildActivity(T::class.java, intent).use { controller ->
            controller.setup()
            untilQuiet()
            action(controller.get())
        }
    }

    /** Files are read on other threads; what they find comes back to the main one. */
    private fun untilQuiet() = repeat(20) {
        Thread.sleep(10)
        ShadowLooper.idleMainLooper()
    }

    private fun drawn(screen: Activity): Bitmap {
        val window = screen.window.decorView
        return Bitmap.createBitmap(window.width, window.height, Bitmap.Config.ARGB_8888).also { window.draw(Canvas(it)) }
    }

    private fun views(view: View): List<View> =
        listOf(view) + if (view is ViewGroup) (0 until view.childCount).flatMap { views(view.getChildAt(it)) } else emptyList()

    private inline fun <reified T : Activity> checkLooks(name: String, intent: Intent? = null) {
        for ((look, qualifiers) in looks) {
            RuntimeEnvironment.setQualifiers(qualifiers)
            shown<T>(intent) { screen ->
                val picture = drawn(screen)
                val file = File("build/screens", "$name-$look.png").apply { parentFile?.mkdirs() }
                file.outputStream().use { picture.compress(Bitmap.CompressFormat.PNG, 100, it) }
                val colours = mutableSetOf<Int>()
                for (y in 0 until picture.height step 7) for (x in 0 until picture.width step 7) colours += picture.getPixel(x, y)
                assertTrue("$name-$look is empty", colours.size > 3)
                val dp = screen.resources.displayMetrics.density
                for (view in views(screen.view(R.id.screen)).filter { it.isShown && it.isClickable && it !is ListView }) {
                    assertTrue("$name-$look: $view is too low to be tapped", view.height >= 48 * dp - 1 || view.parent.parent is ListView)
                }
            }
        }
    }

    @Test
    fun chat() {
        shown<ChatActivity> {} // the application has restored its chat
        val question = ChatMessage(Role.USER, "How much is 2 * 7?")
        val call = ToolCall("calculate", "{\"expression\":\"2*7\"}", "14")
        val text = "It is **14**.\n\n```\n2 * 7\n```"
        val answer = ChatMessage(Role.MODEL, text, stats = GenerationStats(9, 500, 1500), calls = listOf(call))
        app.chat.open(ChatState(id = "1", title = "Numbers", messages = listOf(question, answer)))
        checkLooks<ChatActivity>("chat")
        shown<ChatActivity> { screen ->
            assertEquals("Numbers", screen.title.toString())
            assertEquals(2, screen.view<ListView>(R.id.messages).adapter.count)
        }
    }

    @Test
    fun models() = checkLooks<ModelsActivity>("models")

    @Test
    fun chats() = checkLooks<ChatsActivity>("chats")

    @Test
    fun templates() = checkLooks<TemplatesActivity>("templates")

    @Test
    fun settings() = checkLooks<SettingsActivity>("settings")

    @Test
    fun benchmark() = checkLooks<BenchActivity>("benchmark", BenchActivity.of(app, File(app.filesDir, "models/none.litertlm")))

    @Test
    fun `a model that is gone has no details`() {
        shown<DetailsActivity>(DetailsActivity.of(app, File(app.filesDir, "models/none.litertlm"))) { assertTrue(it.isFinishing) }
    }

    @Test
    fun `the texts of the largest type stay on the screen`() {
        RuntimeEnvironment.setFontScale(2f)
        checkLooks<SettingsActivity>("settings-large")
        checkLooks<TemplatesActivity>("templates-large")
    }

    @Test
    fun `shared words wait in the field`() {
        val send = Intent(Intent.ACTION_SEND).setClass(app, ChatActivity::class.java)
            .setType("text/plain")
            .putExtra(Intent.EXTRA_TEXT, "a page")
        shown<ChatActivity>(send) { assertEquals("a page", it.view<EditText>(R.id.input).text.toString()) }
    }

    @Test
    fun `a link to a model asks first`() {
        shown<ModelsActivity>(ModelsActivity.of(app, Incoming.Download("https://example.org/m.litertlm"))) {
            assertFalse(app.work.isRunning)
        }
    }

    @Test
    fun `what is wrong in the settings is shown, and nothing is saved`() {
        shown<SettingsActivity> { screen ->
            screen.view<EditText>(R.id.top_p).setText("2")
            screen.view<View>(R.id.save).performClick()
            assertNotNull(screen.view<EditText>(R.id.top_p).error)
            assertFalse(screen.isFinishing)
            screen.view<EditText>(R.id.top_p).setText("0.5")
            screen.view<View>(R.id.save).performClick()
            assertTrue(screen.isFinishing)
        }
        assertEquals(0.5, app.chat.state.value.settings.sampler.topP, 0.0)
    }

    @Test
    fun `the local server is off until it is switched on`() {
        shown<SettingsActivity> { screen ->
            val switch = screen.view<Switch>(R.id.server)
            assertFalse(switch.isChecked)
            switch.performClick()
            untilQuiet()
            assertTrue(screen.view<TextView>(R.id.server_text).text.contains("127.0.0.1"))
            switch.performClick()
            untilQuiet()
            assertFalse(screen.view<TextView>(R.id.server_text).text.contains("127.0.0.1"))
        }
    }
}
