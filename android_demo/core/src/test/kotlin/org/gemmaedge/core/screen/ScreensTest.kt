package org.gemmaedge.core.screen

import java.io.File
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.bench.BenchState
import org.gemmaedge.core.bench.Measurement
import org.gemmaedge.core.bundle.Bundle
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.bundle.Progress
import org.gemmaedge.core.bundle.Section
import org.gemmaedge.core.catalogue.ModelEntry
import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Attachment
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.chat.ChatEvent
import org.gemmaedge.core.chat.ChatMessage
import org.gemmaedge.core.chat.ChatSettings
import org.gemmaedge.core.chat.ChatState
import org.gemmaedge.core.chat.ChatStore
import org.gemmaedge.core.chat.DraftState
import org.gemmaedge.core.chat.GenerationStats
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.chat.Notice
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.chat.SamplerSettings
import org.gemmaedge.core.chat.ToolCall
import org.gemmaedge.core.chat.after
import org.gemmaedge.core.memory.DeviceMemory
import org.gemmaedge.core.memory.ProcessMemory
import org.gemmaedge.core.prompt.Template
import org.gemmaedge.core.serve.ServerState
import org.gemmaedge.core.store.Listed
import org.gemmaedge.core.store.Pause
import org.gemmaedge.core.store.StoredBundle
import org.gemmaedge.core.store.WorkRequest
import org.gemmaedge.core.store.WorkState
import org.gemmaedge.core.transfer.TransferProgress
import org.junit.Assert.assertEquals
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Every state of every screen, as the app shows it. */
class ScreensTest {
    @get:Rule val folder = TemporaryFolder()

    private val image = Attachment(Attachment.Kind.IMAGE, "i.jpg")
    private val sound = Attachment(Attachment.Kind.AUDIO, "s.wav")
    private val facts = ChatFacts(ProcessMemory(400L shl 20, 1L shl 30), "/m/e2b.litertlm", hasMicrophone = true)
    private val report = BundleReport.parse(Vectors.text("tiny.litertlm.json"))

    @Test
    fun `the chat`() {
        val request = LoadRequest("/m/e2b.litertlm", Backends(Accelerator.GPU, Accelerator.GPU, Accelerator.CPU))
        val loading = ChatState(id = "1").after(ChatEvent.LoadStarted(request))
        val ready = loading.after(ChatEvent.Loaded)
        val blind = ChatState().after(ChatEvent.LoadStarted(LoadRequest("/m/e2b.litertlm"))).after(ChatEvent.Loaded)
        val talk = listOf(ChatMessage(Role.USER, "?", listOf(image)), ChatMessage(Role.MODEL, "!"))
        val seen = blind.after(ChatEvent.Opened(ChatState(messages = talk)))
        val asked = ready.after(ChatEvent.Sent("What is this?", listOf(image, sound)))
        val writing = asked.after(ChatEvent.Wrote("A *cat*"))
        val states = mapOf(
            "empty" to ChatState(),
            "loading" to loading,
            "ready" to ready,
            "asked" to asked,
            "writing" to writing,
            "answered" to writing.after(ChatEvent.Answered(GenerationStats(5, 100, 300))),
            "one token" to writing.after(ChatEvent.Answered(GenerationStats(1, 100, 300))),
            "cancelled" to writing.after(ChatEvent.Cancelled(GenerationStats(5, 100, 300))),
            "failed" to writing.after(ChatEvent.GenerationFailed("broken")),
            "fell back" to asked.after(ChatEvent.FellBack(Backends(vision = Accelerator.CPU), "no OpenCL")),
            "stuck" to writing.after(ChatEvent.Stuck("asleep")),
            "released" to writing.after(ChatEvent.Released(forMemory = true)),
            "called" to writing.after(ChatEvent.Called(ToolCall("calculate", "{}", "14"))),
            "measuring" to ready.after(ChatEvent.MeasureStarted),
            "serving" to ready.after(ChatEvent.ServeStarted),
        )
        val drafts = mapOf(
            "recording" to DraftState(isRecording = true),
            "no microphone" to DraftState(trouble = "gives no sound"),
            "attached" to DraftState(listOf(image, sound)),
        )
        val notices = Notice.Kind.entries.associate { "notice $it" to ChatState(notice = Notice(it, "detail")) }
        Golden.check(
            "chat",
            states.mapValues { (_, state) -> ChatScreen.of(state, DraftState(), facts) } +
                drafts.mapValues { (_, draft) -> ChatScreen.of(ready, draft, facts) } +
                ("shared with a model that does not see" to ChatScreen.of(blind, DraftState(listOf(image, image)), facts)) +
                ("an image that this model does not see" to ChatScreen.of(seen, DraftState(), facts)) +
                ("shared before a model is loaded" to ChatScreen.of(ChatState(), DraftState(listOf(image)), facts)) +
                notices.mapValues { (_, state) -> ChatScreen.of(state, DraftState(), ChatFacts()).notice },
        )
    }

    @Test
    fun `the work on bundles`() {
        val request = WorkRequest.Download("https://example.org/m.litertlm?download=true")
        fun running(step: TransferProgress.Step, progress: Progress?) = WorkState.Running("m.litertlm", TransferProgress(step, progress))
        val states = mapOf(
            "idle" to WorkState.Idle,
            "asking" to WorkState.Asking(request, 3L shl 30),
            "asking, size unknown" to WorkState.Asking(request, null),
            "beginning" to WorkState.Running("m.litertlm", null),
            "copying" to running(TransferProgress.Step.COPYING, Progress(1L shl 30, 4L shl 30)),
            "waiting" to running(TransferProgress.Step.WAITING_TO_RETRY, null),
            "verifying" to running(TransferProgress.Step.VERIFYING, Progress(1, 2)).copy(canPause = false),
            "done" to WorkState.Done(stored(Evidence.REPORT), wasHere = false),
            "done, unverified" to WorkState.Done(stored(Evidence.NONE), wasHere = false),
        ) + Pause.entries.associate { "paused $it" to WorkState.Paused(request, it) } +
            Problem.entries.associate { "failed $it" to WorkState.Failed(DemoException(it, "m: what; what to do")) }
        Golden.check("work", states.mapValues { (_, state) -> WorkBar.of(state) })
    }

    @Test
    fun `models and what is known of them`() {
        val unknown = report.copy(quality = null, profile = null, family = "other")
        val here = Evidence.entries.associate { "checked $it" to Listed.Here(stored(it)) }
        val others = mapOf(
            "unchecked" to Listed.Here(stored(null)),
            "pushed" to Listed.Here(stored(Evidence.REPORT).copy(isPushed = true)),
            "Gemma 4" to Listed.Here(stored(Evidence.REPORT).copy(report = report.copy(family = "gemma4"))),
            "no quality" to Listed.Here(stored(Evidence.REPORT).copy(report = unknown)),
            "damaged" to Listed.Damaged(File("d.litertlm"), "d.litertlm: cut", isPushed = false),
            "a signature, not yet held against the file" to Listed.Here(stored(null).copy(signedSha256 = "0a".repeat(32))),
            "not signed" to Listed.Damaged(File("d.litertlm"), "d.litertlm: found no", isPushed = false, Problem.NOT_SIGNED),
            "unfinished" to Listed.Unfinished(File("u.litertlm.partial")),
            "offered" to Listed.Offered(ModelEntry("Small", null, report, ChatSettings())),
        )
        val all = here + others
        val details = all.entries.mapNotNull { (name, listed) ->
            (listed as? Listed.Here)?.let { "details, $name" to detailsOf(it.stored) }
        }
        Golden.check("models", all.mapValues { ModelRow.of(it.value) } + details)
    }

    @Test
    fun `the benchmark`() {
        val run = Measurement(1.5, 0.5, 100.0, 10.0, 400L shl 20, 1L shl 30, 1424L shl 20)
        val states = mapOf(
            "idle" to BenchState.Idle,
            "running" to BenchState.Running("m", 3, 1, isStopping = false),
            "stopping" to BenchState.Running("m", 3, 1, isStopping = true),
            "done" to BenchState.Done("m", listOf(run, run.copy(initSeconds = 2.5))),
            "stopped at once" to BenchState.Done("m", emptyList()),
            "failed" to BenchState.Failed("m", "no memory"),
        )
        Golden.check(
            "bench",
            states.mapValues { (_, state) -> BenchScreen.of(state, "m", isEngineFree = true) } + mapOf(
                "no model" to BenchScreen.of(BenchState.Idle, null, isEngineFree = true),
                "busy" to BenchScreen.of(BenchState.Idle, "m", isEngineFree = false),
            ),
        )
    }

    @Test
    fun `the settings and the local server`() {
        val form = SettingsForm.of(ChatSettings("Be brief.", SamplerSettings(1, 0.5, 0.0, 7), 20, usesTools = true))
        val forms = mapOf(
            "as they are" to form,
            "as they begin" to SettingsForm.of(ChatSettings()),
            "all wrong" to form.copy(temperature = "-1", topK = "0", topP = "1.1", seed = "x", maxAnswerTokens = "0"),
            "empty" to form.copy(temperature = "", topK = "", topP = "", seed = "", maxAnswerTokens = ""),
            "not finite" to form.copy(temperature = "Infinity"),
        )
        val server = mapOf(
            "server off" to ServerState.Off,
            "server on" to ServerState.On("http://127.0.0.1:8787/v1", "a1b2"),
            "server failed" to ServerState.Failed(8787, "Address already in use"),
        )
        assertEquals(ChatSettings("Be brief.", SamplerSettings(1, 0.5, 0.0, 7), 20, usesTools = true), form.settings)
        Golden.check(
            "settings",
            forms.mapValues { (_, it) -> mapOf("form" to it, "wrong" to it.wrong.toList(), "saved" to (it.settings != null)) } +
                server.mapValues { ServerCard.of(it.value) },
        )
    }

    @Test
    fun `the questions before a model is loaded`() {
        val gigabyte = 1L shl 30
        fun device(usable: Long, total: Long = 8 * gigabyte, isLow: Boolean = false) = DeviceMemory(usable, 0, total, null, isLow)
        val whole = stored(Evidence.REPORT)
        val shorter = whole.copy(bundle = whole.bundle.copy(file = File("short.litertlm")), report = report.copy(contextTokens = 512))
        val needed = report.footprint
        val trust = (Evidence.entries.associateWith { stored(it) } + mapOf(null to stored(null))).entries
            .associate { "trust ${it.key}" to LoadQuestion.ofTrust(it.value) }
        val memory = mapOf(
            "fits" to LoadQuestion.ofMemory(whole, device(gigabyte), null),
            "slow" to LoadQuestion.ofMemory(whole, device(needed.anonBytes), null),
            "slow, and a shorter one is here" to LoadQuestion.ofMemory(whole, device(needed.anonBytes), shorter),
            "not now" to LoadQuestion.ofMemory(whole, device(1 shl 20), null),
            "low" to LoadQuestion.ofMemory(whole, device(gigabyte, isLow = true), null),
            "never" to LoadQuestion.ofMemory(whole, device(1 shl 20, total = 2 shl 20), null),
            "without a report" to LoadQuestion.ofMemory(stored(Evidence.NONE), device(gigabyte), null),
        )
        Golden.check("load", trust + memory)
    }

    @Test
    fun `the chats and the templates`() {
        val store = ChatStore(folder.newFolder(), newId = { "1" })
        val chat = ChatState(id = "1", messages = listOf(ChatMessage(Role.USER, "Hello\nthere"), ChatMessage(Role.MODEL, "Good day")))
        store.write(chat)
        store.write(chat.copy(id = "2", title = "Named"))
        val lines = { query: String -> store.list(query).sortedBy { it.id }.map { listOf(it.id, it.title, it.excerpt) } }
        val templates = listOf(Template("Shorter", "Say this in one sentence:\n{text}"), Template("Poem", "x".repeat(200)))
        Golden.check(
            "lists",
            mapOf(
                "chats" to lines(""), "chats with day" to lines("day"), "no chats" to lines("nobody"),
                "templates" to templates.map(::rowOf),
            ),
        )
    }

    private fun stored(evidence: Evidence?): StoredBundle {
        val sections = listOf("tf_lite_vision_encoder", "tf_lite_audio_encoder_hw").map { Section(it, 0, 10, null) }
        val bundle = Bundle(File("m.litertlm"), 1L shl 21, sections)
        val reported = report.takeIf { evidence == Evidence.SIGNATURE || evidence == Evidence.REPORT }
        return StoredBundle(bundle, reported, isPushed = false, evidence)
    }
}
