"""Text encoders that are no transformers: word vectors and a recurrent network, from scratch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import gloria
from gloria.aggregators import last_n
from gloria.checks import check_integer, check_texts
from gloria.errors import DataError, EmptyTextError, OptionError, UnknownNameError
from gloria.types import Recipe, TextFeatures, TokenizedText

_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


class Vocabulary:
    """Words and their numbers, lower-cased; 0 is [UNK], what stands for every other word.

    A word is a run of letters and digits, or a single other character that is not white space.

    Args:
        words: all of them, without [UNK].

    Raises:
        DataError: there is no word, or one comes twice.

    Example:
        >>> vocabulary = Vocabulary.of(["No effusion.", "Small effusion."], min_count=2)
        >>> vocabulary.words
        ['.', 'effusion']
        >>> vocabulary.numbers(["Large", "effusion", "."])
        [0, 2, 1]
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(self.words, start=1)}
        if not self.words:
            raise DataError("vocabulary must hold at least one word; got none.")
        if len(self._numbers) < len(self.words):
            twice, _ = Counter(self.words).most_common(1)[0]
            raise DataError(f"vocabulary must hold each word once; {twice!r} comes twice.")

    @classmethod
    def of(cls, texts: Sequence[str], min_count: int) -> Vocabulary:
        """The words that come at least ``min_count`` times, by descending count.

        Raises:
            DataError: no word does.
        """
        check_texts(texts)
        check_integer("min_count", min_count, 1)
        counts = Counter(word.lower() for text in texts for word in split(text))
        words = sorted(counts, key=lambda word: (-counts[word], word))
        kept = [word for word in words if counts[word] >= min_count]
        if not kept:
            raise DataError(
                f"no word comes {min_count} times in the {len(texts)} reports; lower min_count."
            )
        return cls(kept)

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """From a file with one word a line.

        Raises:
            DataError: it does not exist, or is no UTF-8.
        """
        try:
            return cls(Path(path).read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as cause:
            raise DataError(f"vocabulary {path} can't be read: {cause}.") from cause

    def __len__(self) -> int:
        return len(self.words) + 1

    def numbers(self, words: Sequence[str]) -> list[int]:
        """The number of each word, 0 for unknown ones."""
        return [self._numbers.get(word.lower(), 0) for word in words]

    def write(self, path: Path) -> None:
        """One word a line."""
        path.write_text("\n".join(self.words) + "\n", encoding="utf-8")


def split(text: str) -> list[str]:
    """The words of a text as they stand there; see :class:`Vocabulary`."""
    return _WORD.findall(text)


class Last(nn.Module):
    """The last kept value along an axis: an aggregator, for the last valid state."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        """Reduce ``dim``."""
        return last_n(values, mask, dim, 1, "sum")


class RecurrentTextEncoder(nn.Module):
    """Word vectors, a recurrent network that reads from left to right, and its last valid state.

    ``words`` are the network's states, one per word; ``pooled`` is their reduction. A word's state
    knows the words before it, not those behind. Padding stands at the end, so nothing reads it.

    Args:
        network: takes ``(text, word, embedding_dim)`` and returns ``(text, word, width)``.
        vocabulary: a :class:`Vocabulary`, its words, or a file with one word a line. None: built
            from ``reports``.
        reports: the training reports.
        min_count: words that come less often there share [UNK], which gets its vector from them.
        embedding_dim: width of the word vectors.
        width: width of the states.
        pooling: name of a registered aggregator of states.
        options: what else the recipe must hold.
    """

    name: ClassVar[str]

    def __init__(
        self,
        network: nn.Module,
        *,
        vocabulary: Sequence[str] | str | Path | None,
        reports: Sequence[str] | None,
        min_count: int,
        embedding_dim: int,
        width: int,
        pooling: str,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.vocabulary = _vocabulary(vocabulary, reports, min_count)
        self.embedding = nn.Embedding(len(self.vocabulary), embedding_dim)
        self.network = network
        self.pool = gloria.create_aggregator(pooling)
        self.pooled_dim = self.word_dim = width
        self._options = {
            "embedding_dim": embedding_dim,
            "width": width,
            "pooling": pooling,
            **options,
        }

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """Turn strings into tensors; an unknown word stays a word, as [UNK].

        Raises:
            DtypeError: ``texts`` is not a sequence of strings.
            ShapeError: there is no text.
            EmptyTextError: a text has no word.
        """
        check_texts(texts)
        tokens = [split(text) for text in texts]
        for index, (text, words) in enumerate(zip(texts, tokens, strict=True)):
            if not words:
                raise EmptyTextError(f"texts[{index}] has no word: {text!r}. Leave it out.")
        lengths = torch.tensor([len(words) for words in tokens])[:, None]
        positions = torch.arange(int(lengths.max())).expand(len(tokens), -1)
        numbers = torch.zeros_like(positions)
        numbers[positions < lengths] = torch.tensor(
            [number for words in tokens for number in self.vocabulary.numbers(words)]
        )
        word_ids = positions.masked_fill(positions >= lengths, -1)
        return TokenizedText({"numbers": numbers}, word_ids, tokens)

    def forward(self, texts: TokenizedText | Sequence[str]) -> TextFeatures:
        """Encode texts, given as strings or as :meth:`tokenize` returns them (on any device)."""
        if not isinstance(texts, TokenizedText):
            texts = self.tokenize(texts)
        texts = texts.to(self.embedding.weight.device)
        mask = texts.word_ids >= 0
        states = self.network(self.embedding(texts.inputs["numbers"]))
        states = states.masked_fill(~mask[..., None], 0.0)
        return TextFeatures(self.pool(states, mask[..., None], 1), states, mask, texts.tokens)

    def recipe(self, folder: Path) -> Recipe:
        """Write the vocabulary into ``folder``."""
        self.vocabulary.write(folder / "vocabulary.txt")
        return Recipe(self.name, self._options, {"vocabulary": "vocabulary.txt"})


class GRUTextEncoder(RecurrentTextEncoder):
    """VSE++'s text encoder: word vectors and a gated recurrent unit.

    Args:
        reports: the training reports, to build the vocabulary from.
        vocabulary: instead, its words, or a file with one word a line.
        min_count: words that come less often in the reports share [UNK]; published code: 4.
        embedding_dim: width of the word vectors, uniform in ±0.1 at first; published: 300.
        width: width of the states; published: 1024.
        layers: published: 1.
        pooling: name of a registered aggregator of states; published: ``"last"``.

    Raises:
        OptionError: neither reports nor a vocabulary.
        DataError: no word comes often enough.

    The published code puts a start and an end token around the text; here there is none.

    Source: Faghri et al., VSE++ (BMVC 2018), section 4.

    Example:
        >>> encoder = GRUTextEncoder(["No effusion."], min_count=1, width=8)
        >>> features = encoder(["Large effusion."])
        >>> features.tokens, features.words.shape, features.pooled.shape
        ([['Large', 'effusion', '.']], torch.Size([1, 3, 8]), torch.Size([1, 8]))
    """

    name = "baselines:gru"

    def __init__(
        self,
        reports: Sequence[str] | None = None,
        *,
        vocabulary: Sequence[str] | str | Path | None = None,
        min_count: int = 4,
        embedding_dim: int = 300,
        width: int = 1024,
        layers: int = 1,
        pooling: str = "last",
    ) -> None:
        super().__init__(
            GRU(embedding_dim, width, layers),
            vocabulary=vocabulary,
            reports=reports,
            min_count=min_count,
            embedding_dim=embedding_dim,
            width=width,
            pooling=pooling,
            options={"layers": layers},
        )
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)


class SRUTextEncoder(RecurrentTextEncoder):
    """DSVE's text encoder: word vectors and stacked simple recurrent units.

    Args:
        reports, vocabulary, min_count, pooling: as for :class:`GRUTextEncoder`.
        embedding_dim: width of the word vectors; published: 620.
        width: width of the states; published: 2400.
        layers: published: 4.
        dropout: of what each layer reads; published code: 0.25.

    The published word vectors come from skip-thought; here they are learned from scratch, and start
    from a normal distribution. Much shorter ones would leave every gate half open at first, and a
    state with a memory of two words.

    Source: Engilberge et al., Finding beans in burgers (CVPR 2018), section 3.
    """

    name = "baselines:sru"

    def __init__(
        self,
        reports: Sequence[str] | None = None,
        *,
        vocabulary: Sequence[str] | str | Path | None = None,
        min_count: int = 4,
        embedding_dim: int = 620,
        width: int = 2400,
        layers: int = 4,
        dropout: float = 0.25,
        pooling: str = "last",
    ) -> None:
        super().__init__(
            SRU(embedding_dim, width, layers, dropout),
            vocabulary=vocabulary,
            reports=reports,
            min_count=min_count,
            embedding_dim=embedding_dim,
            width=width,
            pooling=pooling,
            options={"layers": layers, "dropout": dropout},
        )


class GRU(nn.Module):
    """torch's GRU, its states only."""

    def __init__(self, in_dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.GRU(in_dim, width, layers, batch_first=True)

    def forward(self, vectors: Tensor) -> Tensor:
        """``(text, word, in_dim)`` to ``(text, word, width)``."""
        states: Tensor = self.layers(vectors)[0]
        return states


class SRU(nn.Module):
    """Stacked simple recurrent units, in plain PyTorch.

    The only thing that a step takes from the one before it is an elementwise product, so all
    matrix products of a layer are one::

        f_t = σ(W_f x_t + b_f),  r_t = σ(W_r x_t + b_r)
        c_t = f_t · c_{t-1} + (1 - f_t) · W x_t
        h_t = r_t · tanh(c_t) + (1 - r_t) · x_t

    Where x is not as wide as h, a linear map of x takes its place in the last line.

    Args:
        in_dim: width of what the first layer reads.
        width: width of the states.
        layers: how many.
        dropout: probability, of what each layer reads; the same entries at all words of a text.

    Source: Lei & Zhang, Training RNNs as fast as CNNs (2017), eq. 3 to 7, with tanh: the first
    version, which DSVE used. Later ones let the gates see ``c_{t-1}`` and scale the highway.
    """

    def __init__(self, in_dim: int, width: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        check_integer("layers", layers, 1)
        widths = [in_dim] + [width] * (layers - 1)
        self.layers = nn.ModuleList(_SRULayer(each, width) for each in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """``(text, word, in_dim)`` to ``(text, word, width)``."""
        for layer in self.layers:
            kept = self.dropout(torch.ones_like(vectors[:, :1]))
            vectors = layer(vectors * kept)
        return vectors


class _SRULayer(nn.Module):
    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        parts = 3 if in_dim == width else 4  # W, W_f, W_r, and the highway's
        self.weight = nn.Parameter(torch.empty(parts * width, in_dim))
        self.bias = nn.Parameter(torch.zeros(2 * width))
        bound = (3 / in_dim) ** 0.5  # keeps the variance of x
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        width = len(self.bias) // 2
        candidate, gates, *highway = nn.functional.linear(x, self.weight).split(
            [width, 2 * width] + [width] * (len(self.weight) // width - 3), dim=-1
        )
        forget, reset = (gates + self.bias).sigmoid().chunk(2, dim=-1)
        fresh = (1 - forget) * candidate
        memory = torch.zeros_like(fresh[:, 0])
        memories = []
        for step in range(x.shape[1]):
            memory = forget[:, step] * memory + fresh[:, step]
            memories.append(memory)
        skipped = highway[0] if highway else x
        states: Tensor = reset * torch.stack(memories, 1).tanh() + (1 - reset) * skipped
        return states


ENCODERS: dict[str, type[GRUTextEncoder | SRUTextEncoder]] = {
    "gru": GRUTextEncoder,
    "sru": SRUTextEncoder,
}


def create(
    name: str, *, reports: Sequence[str] | None = None, **options: Any
) -> RecurrentTextEncoder:
    """Make the text encoder ``baselines:<name>``."""
    if name not in ENCODERS:
        raise UnknownNameError(
            f"no text encoder is named 'baselines:{name}'; there are {', '.join(ENCODERS)}."
        )
    return ENCODERS[name](reports, **options)


def list_names() -> list[str]:
    """What follows ``baselines:``."""
    return list(ENCODERS)


def _vocabulary(
    given: Sequence[str] | str | Path | None, reports: Sequence[str] | None, min_count: int
) -> Vocabulary:
    if isinstance(given, str | Path):
        return Vocabulary.read(given)
    if given is not None:
        return Vocabulary(given)
    if reports is None:
        raise OptionError(
            "reports or vocabulary must be given: this encoder has no words of its own. "
            "Pass reports=[...] to build a vocabulary from the training reports."
        )
    return Vocabulary.of(reports, min_count)
