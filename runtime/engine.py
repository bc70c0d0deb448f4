"""The engine: a bundle loaded and ready, from which sessions and conversations are made.

Names and defaults are litert_lm's. One thread runs the model, a step for each reply that is being written, in turns, or
one for several together where the bundle was converted with --batch.
The keys and values of several sessions and conversations are kept at once, as many as there are slots.
"""

import os
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from gemma_edge.profiles.device import DeviceProfile
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.media_reader import MediaReader
from gemma_edge.runtime.chat.options import ConversationOptions, as_keywords
from gemma_edge.runtime.chat.session import Session
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.config import CPU, Backend, ConfigError, backend_of, check_max_output_tokens
from gemma_edge.runtime.engine_memory import EngineMemory, read_engine_memory
from gemma_edge.runtime.executors.base import WEIGHT_CACHE, Logits
from gemma_edge.runtime.executors.open import open_decoder, open_encoders, several_models
from gemma_edge.runtime.formats.file_range import FileRange, file_states, have_changed
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.formats.trust.signed import check_trusted
from gemma_edge.runtime.kv.model_drafter import guessing
from gemma_edge.runtime.kv.saved import opened_state
from gemma_edge.runtime.kv.scheduler import Scheduler, Steps, Work
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.kv.slots import SlotPool
from gemma_edge.runtime.kv.store import FolderStore
from gemma_edge.runtime.memory.ahead import ReadAhead
from gemma_edge.runtime.memory.cgroup_limit import own_limit
from gemma_edge.runtime.memory.pressure import release_pages, relieve, trim_heap
from gemma_edge.runtime.memory.watch import BudgetWatch, LoadMarks, OverBudgetAction
from gemma_edge.runtime.settings import check_draft_model, check_model, choose_settings
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig


class Engine:
    """A loaded model.

    Args:
        model_path: a .litertlm bundle, or an ONNX directory (extra `onnx`).
        backend: `Backend.CPU(thread_count=...)`.
        max_num_tokens: a context shorter than the bundle's.
        max_num_images: the most in one message; by default what the context holds.
        cache_dir: where packed weights are kept, by default `~/.cache/gemma-edge` (litert_lm writes beside the bundle);
            ":nocache" packs into memory at every start.
        vision_backend, audio_backend: where images and recordings are encoded, by default as `backend`. An encoder is
            loaded when it is first needed; with a profile it is released when the message is encoded.
        enable_speculative_decoding: whether replies are guessed from the prompt and what they say, or by the bundle's
            drafter, and several tokens verified at once; the text is the same. By default where the bundle was
            converted with --draft or --drafter; False also leaves the drafter out of memory.
        profile: the device, by name, file or value. A bundle that does not fit its budget is refused; threads, context
            and the place of packed weights follow it where nothing is asked for; memory is watched from then on.
        over_budget: "raise", or "warn" to go on where the budget does not hold, or "switch" to go on with the smaller
            model of a bundle that holds two, as `use_model` does, and to raise where that is not enough.
        slots: how many sessions and conversations keep their keys and values at once; with more, one that was silent
            runs its tokens again. Memory is taken when a slot is first needed. By default 4, with a profile as many of
            them as its budget pays for. Asked for, slots also keep what was closed, for a prompt that begins like it.
        model: which to run of a bundle that holds two ("e4b", "e2b"); by default the large one.
        draft_model: the small one of the two, to guess how the large one goes on; by default the prompt and the reply
            are all that is guessed from. Has a slot of its own beside `slots`.
        trusted_key: a public key in PEM, without whose owner's signature nothing is loaded; all of the bundle is read
            for that. By default what the environment variable GEMMA_EDGE_TRUSTED_KEY names, if anything.

    Raises:
        OverBudget: the bundle does not fit the profile, or the process crossed the budget; later also from every call
            that runs the model.
        ProfileError: no such profile, or it is not valid.
        BundleError, OnnxDirectoryError: not a bundle or directory, damaged, or without a section that is needed.
        BundleMismatchError: this runtime cannot run its kind of model.
        ConfigError, ExecutorError, WeightCacheError: settings that cannot be honoured.
        SignatureError: with a trusted key, a bundle that its owner has not signed.
    """

    def __init__(
        self,
        model_path: str,
        backend: Backend | type[Backend] = Backend.CPU(),  # noqa: B008  frozen, and litert_lm's default
        max_num_tokens: int | None = None,
        max_num_images: int | None = None,
        cache_dir: str | None = None,
        vision_backend: Backend | type[Backend] | None = None,
        audio_backend: Backend | type[Backend] | None = None,
        enable_benchmark: bool = False,  # noqa: ARG002  figures are always collected
        *,
        enable_speculative_decoding: bool | None = None,
        profile: str | os.PathLike[str] | DeviceProfile | None = None,
        over_budget: OverBudgetAction = "raise",
        slots: int | None = None,
        model: str | None = None,
        draft_model: str | None = None,
        trusted_key: str | os.PathLike[str] | None = None,
    ) -> None:
        started = time.perf_counter()
        backend = _cpu("backend", backend)
        vision = _cpu("vision_backend", vision_backend or backend)
        audio = _cpu("audio_backend", audio_backend or backend)
        self._marks = LoadMarks()
        self.model_path, self.cache_dir = model_path, cache_dir
        self.max_num_images = max_num_images
        self.backend, self.vision_backend, self.audio_backend = backend, vision, audio
        check_trusted(model_path, trusted_key)
        self.bundle = open_model(Path(model_path))
        self._opened = file_states(self.bundle.path)
        draft_slots = int(draft_model is not None)
        settings = choose_settings(
            self.bundle, backend, max_num_tokens, cache_dir, profile, over_budget, slots, draft_slots
        )
        if self.bundle.path.is_dir():  # a bundle is opened without reading a graph, or importing anything
            self._marks.mark("libraries and graphs")
        self.text_model = TextModel(self.bundle)
        self._marks.mark("tokenizer")
        self._check_memory: Callable[[], None] = lambda: None
        self.profile, self.spare_bytes = settings.profile, settings.spare_bytes
        drafts = enable_speculative_decoding is not False
        self._decoder = open_decoder(self.bundle, settings.threads, settings.cache_dir, with_drafter=drafts)
        several = several_models(self._decoder)
        self.models: tuple[str, ...] = () if several is None else tuple(several.models)
        try:
            check_model(self.bundle.path.name, self.models, model, over_budget)
            check_draft_model(self.bundle.path.name, self.models, draft_model, enable_speculative_decoding)
            is_speculating = self._speculates(enable_speculative_decoding if draft_model is None else True)
        except BaseException:
            self._decoder.close()
            raise
        self._pool = SlotPool(
            self._decoder, settings.max_num_tokens, settings.slots, keep=slots is not None, several=several
        )
        self._speculating = guessing(self._pool, draft_model) if is_speculating else ()
        if model is not None:
            self._pool.use(model)
        if settings.profile is not None:
            self._check_memory = self._watch(settings.profile, over_budget)
        self._marks.mark("decoder")
        self._scheduler = Scheduler()
        threads = settings.threads
        self._encoders = open_encoders(
            self.bundle, vision.thread_count or threads, audio.thread_count or threads, settings.cache_dir
        )
        self.media = MediaReader(
            self.text_model,
            self._encoders,
            max_num_images=max_num_images,
            keep_loaded=settings.profile is None,
        )
        trim_heap()
        if self.bundle.path.is_file():  # 80 MiB of E2B's graphs are read to open it, and 6 of them again
            release_pages([FileRange.whole(self.bundle.path)])
        self._ahead = ReadAhead(self._decoder.mapped_ranges().named.get(WEIGHT_CACHE, ()), self.spare_bytes)
        try:
            self._check_memory()
        except BaseException:
            self.close()
            raise
        self.init_s = time.perf_counter() - started

    def _watch(self, profile: DeviceProfile, over_budget: OverBudgetAction) -> Callable[[], None]:
        """What runs before each call into the model."""
        mapped = self._decoder.mapped_ranges()
        release = partial(relieve, profile.budget_bytes, mapped.rows, mapped.weights)
        subject = f"{self.bundle.path.name} on {profile.name}"
        switch = partial(_switch_for_memory, self._pool, self.models[-1] if self.models else None)
        return BudgetWatch(subject, profile.budget, self._marks, own_limit(), over_budget, release, switch).check

    def _speculates(self, is_asked: bool | None) -> bool:
        """Raises ConfigError."""
        if is_asked and not self._decoder.can_verify:
            raise ConfigError(
                f"enable_speculative_decoding: {self.bundle.path.name} cannot verify what is guessed; leave it out, or "
                "convert to .litertlm with --draft 4"
            )
        return self._decoder.can_verify if is_asked is None else is_asked

    @property
    def model(self) -> str | None:
        """Which of `models` runs; None of a bundle with one."""
        return self._pool.model or None

    def use_model(self, model: str) -> None:
        """Run this one of `models` from now on.

        Sessions and conversations go on with their tokens, and a reply that is being written with its next one. Keys
        and values are each model's own: what this one has not run of a sequence runs with its next turn, once, where a
        slot still holds the rest. Raises ConfigError: the bundle does not hold it.
        """
        check_model(self.bundle.path.name, self.models, model)
        self._do(partial(self._pool.use, model))

    @property
    def max_num_tokens(self) -> int:
        """How many tokens a session or conversation can have."""
        return self._pool.context_tokens

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts every sequence."""
        return self.text_model.start_token_id

    @property
    def eos_token_ids(self) -> list[list[int]]:
        """The token sequences that end a reply."""
        return self.text_model.eos_token_ids

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without a start token."""
        return self.text_model.tokenizer.encode(text)

    def detokenize(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        return self.text_model.tokenizer.decode(token_ids)

    @as_keywords(ConversationOptions)
    def create_conversation(self, options: ConversationOptions) -> Conversation:
        """A conversation; the parameters are the fields of `ConversationOptions`.

        Raises TemplateError, BundleError: no usable chat template. ToolError: a tool without a name. MessageError: a
        message that cannot be read. ConfigError: max_output_tokens below 1.
        """
        sequence = self.new_sequence(enable_speculative_decoding=options.enable_speculative_decoding)
        return Conversation(self.text_model, sequence, options, self.init_s, self.media)

    def create_session(
        self,
        *,
        apply_prompt_template: bool = True,
        sampler_config: SamplerConfig | None = None,
        max_output_tokens: int | None = None,
        enable_speculative_decoding: bool | None = None,
    ) -> Session:
        """A session. sampler_config None: the bundle's own. enable_speculative_decoding None: as the engine's.

        Raises ConfigError.
        """
        check_max_output_tokens(max_output_tokens)
        return Session(
            self.text_model,
            self.new_sequence(enable_speculative_decoding=enable_speculative_decoding),
            Sampler(sampler_config or self.text_model.sampler_config),
            self.init_s,
            apply_prompt_template=apply_prompt_template,
            max_output_tokens=max_output_tokens,
        )

    def new_sequence(
        self, *, is_passing: bool = False, enable_speculative_decoding: bool | None = None
    ) -> TokenSequence:
        """An empty token sequence: what sessions and conversations are built on.

        is_passing: nobody will go on with it; where slots are kept, no chat loses its slot for it.
        enable_speculative_decoding: as the engine's by default. Raises ConfigError.
        """
        speculating = self._speculating
        if enable_speculative_decoding is not None:
            is_on = self._speculates(enable_speculative_decoding)
            speculating = (speculating or guessing(self._pool, None)) if is_on else ()
        return TokenSequence(
            self._scheduler, self._pool, self._check_memory, is_passing=is_passing, speculating=speculating
        )

    @property
    def batch_rows(self) -> Sequence[int]:
        """Of how many conversations a call can take a step, rising; none of a bundle converted without --batch."""
        return self._decoder.batch_rows

    @property
    def embedding_bytes(self) -> int:
        """What each row of an encoded image or recording takes."""
        return self._decoder.embedding_bytes

    @property
    def slots(self) -> int:
        """How many sequences can keep their keys and values at once."""
        return self._pool.count

    def keep_chats(self, folder: Path | None = None, most_bytes: int = 1 << 31) -> None:
        """Know chats by their tokens from now on, as a server needs it whose sequences end with each request.

        folder: where chats are saved that give up their slot, and with `save_chats`; found there when they go on, by
        this process or another. most_bytes: of this model's files together.
        """
        _ = self._decoder.digest  # the first time takes a while, and replies are being written meanwhile
        pool = self._pool
        self._do(lambda: pool.keep(None if folder is None else FolderStore(folder, pool.digest, most_bytes)))

    def save_chats(self) -> None:
        """Save what slots hold and was not saved yet; where it cannot be written, the log says why."""
        self._do(self._pool.save)

    def _do(self, work: Callable[[], None]) -> None:
        """On the model's thread, between two steps of replies. Raises what it raises."""

        def steps(_work: Work[None]) -> Steps:
            work()
            yield

        list(self._scheduler.submit(steps))

    def memory(self) -> EngineMemory:
        """What the process uses now, and what of it belongs to which part of the bundle."""
        return read_engine_memory(self._decoder, self._pool, self._marks)

    def load_cache(self, path: str | os.PathLike[str]) -> Sequence[int]:
        """Take over keys and values that a session or conversation of the same model saved; returns their tokens.

        Whatever begins with these tokens then runs only what comes after them. They stay until their slot is needed.

        Raises SavedCacheError: no such file, damaged, or another model's. ContextOverflowError: it is too long.
        """
        pool, owner = self._pool, _Loaded()
        _ = pool.digest  # as in `keep_chats`

        def steps(work: Work[Sequence[int]]) -> Steps:
            while True:
                with opened_state(user_path(path), pool.digest) as state:  # each time: another model may run by now
                    if (lease := pool.lend(weakref.ref(owner), state.token_ids)) is not None:
                        try:
                            lease.slot.set_state(state)
                        finally:
                            lease.release()
                        work.put(state.token_ids)
                        return
                yield

        [token_ids] = self._scheduler.submit(steps)
        return token_ids

    def health(self) -> None:
        """Prove that the engine can answer: the bundle on disk is the one that was opened, and the model runs.

        Runs one token between two steps of whatever is being written, and leaves every slot as it was.

        Raises:
            GemmaEdgeError: what is wrong.
        """
        if have_changed(self._opened):
            raise HealthError(f"{self.bundle.path} was changed or removed since it was opened; create a new engine")
        token_id = self.bos_token_id or 0
        pool, check_memory = self._pool, self._check_memory

        def steps(work: Work[Logits]) -> Steps:
            check_memory()
            work.put(pool.probe(token_id))
            yield

        [logits] = self._scheduler.submit(steps)
        if not float(abs(logits).max()) < float("inf"):
            raise HealthError(f"{self.bundle.path}: the logits are not finite; convert the checkpoint again")

    def close(self) -> None:
        """Release the model. Closing twice is fine, and so is closing before sessions and conversations."""
        self._ahead.close()
        self._scheduler.close()
        self._encoders.release()
        self._pool.close()
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _switch_for_memory(pool: SlotPool, model: str | None) -> bool:
    """To the smallest model, on the model's thread; whether another one ran."""
    if model is None or pool.model == model:
        return False
    pool.use(model, is_short=True)
    return True


class _Loaded:
    """Whose tokens a slot holds that was filled from a file: nobody's, once it is."""


class HealthError(GemmaEdgeError):
    """The engine cannot answer, or no longer should."""


def _cpu(name: str, backend: Backend | type[Backend]) -> CPU:
    backend = backend_of(backend)
    if not isinstance(backend, CPU):
        raise ConfigError(f"{name} is {backend.get_name()}, this executor runs on cpu; use Backend.CPU()")
    return backend
