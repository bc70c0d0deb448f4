package org.gemmaedge.core.screen

import java.io.File
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
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
import org.gemmaedge.core.chat.ChatSettings
import org.gemmaedge.core.chat.ChatState
import org.gemmaedge.core.chat.DraftState
import org.gemmaedge.core.chat.GenerationStats
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.chat.Notice
import org.gemmaedge.core.chat.after
import org.gemmaedge.core.memory.ProcessMemory
import org.gemmaedge.core.store.Listed
import org.gemmaedge.core.store.Pause
import org.gemmaedge.core.store.StoredBundle
import org.gemmaedge.core.store.WorkRequest
import org.gemmaedge.core.store.WorkState
import org.gemmaedge.core.transfer.TransferProgress
import org.junit.Test

/** Every state of every screen, as the app shows it. */
class ScreensTest {
    private val image = Attachment(Attachment.Kind.IMAGE, "i.jpg")
    private val sound = Attachment(Attachment.Kind.AUDIO, "s.wav")
    private val facts = ChatFacts(ProcessMemory(400L shl 20, 1L shl 30), "/m/e2b.litertlm", hasMicrophone = true)
    private val report = BundleReport.parse(Vectors.text("tiny.litertlm.json"))

    @Test
    fun `the chat`() {
        val request = LoadRequest("/m/e2b.litertlm", Backends(Accelerator.GPU, Accelerator.GPU, Accelerator.CPU))
        val loading = ChatState(id = "1").after(ChatEvent.LoadStarted(request))
        val ready = loading.after(ChatEvent.Loaded)
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
            "no quality" to Listed.Here(stored(Evidence.REPORT).copy(report = unknown)),
            "damaged" to Listed.Damaged(File("d.litertlm"), "d.litertlm: cut", isPushed = false),
            "unfinished" to Listed.Unfinished(File("u.litertlm.partial")),
            "offered" to Listed.Offered(ModelEntry("Small", null, report, ChatSettings())),
        )
        val all = here + others
        val details = all.entries.mapNotNull { (name, listed) ->
            (listed as? Listed.Here)?.let { "details, $name" to detailsOf(it.stored) }
        }
        Golden.check("models", all.mapValues { ModelRow.of(it.value) } + details)
    }

    private fun stored(evidence: Evidence?): StoredBundle {
        val sections = listOf("tf_lite_vision_encoder", "tf_lite_audio_encoder_hw").map { Section(it, 0, 10, null) }
        val bundle = Bundle(File("m.litertlm"), 1L shl 21, sections)
        return StoredBundle(bundle, report.takeIf { evidence == Evidence.REPORT }, isPushed = false, evidence)
    }
}
