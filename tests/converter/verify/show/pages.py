"""A report made by hand, and a reader of its page."""

from html.parser import HTMLParser

from gemma_edge.converter.verify.find.layers import LayerReport, TensorReport
from gemma_edge.converter.verify.measure.scores import Metric
from gemma_edge.converter.verify.measure.similarity import Similarity
from gemma_edge.converter.verify.show.report import BundleScores, Prediction, VerifyReport, WorstToken

KL = tuple(10 ** (-n / 9) for n in range(40))


def report() -> VerifyReport:
    """Of two layers and 40 tokens."""
    metrics = {"kl": Metric(0.01, 0.009, 0.012), "top1": Metric(0.97), "ppl": Metric(1.01), "kl_max": Metric(1.0)}
    like = Similarity(expected=100.0, found=99.0, product=99.0, error=0.5)
    layers = tuple(LayerReport(n, like, like, like, departs=False) for n in range(2))
    tensors = tuple(TensorReport(f"layers.{n}.mlp.up_proj.weight", "int4", 20.0 + n, 0.99, 1.0) for n in range(2))
    worst = WorstToken(0, 3, 1.0, "In the", " end", (Prediction(" end", 0.75),), (Prediction(" sky", 0.5),))
    return VerifyReport(
        "tiny-gemma3", 1, 40, BundleScores("int4.litertlm", metrics, KL), None, None, 40, 0.009, layers, tensors,
        (worst,), (), (), (), (), 1.5, 1 << 20,
    )  # fmt: skip


class Page(HTMLParser):
    """Collects text, and checks that what is opened is closed and nothing outside is needed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures = 0
        self._texts: list[str] = []
        self.feed(text)
        assert self.open == []

    @property
    def text(self) -> str:
        """Without line ends."""
        return " ".join("".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        places = [str(value) for name, value in attrs if name in ("src", "href")]
        assert all(place.startswith("data:image/svg+xml;base64,") for place in places), "it must need nothing else"
        self.pictures += tag == "img"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._texts.append(data)
