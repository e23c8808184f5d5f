"""The recurrent text encoders, step by step and without padding; their words and vocabulary."""

import math

import pytest
import torch
from gloria_baselines.text import SRU, GRUTextEncoder, Last, SRUTextEncoder, Vocabulary, split

import gloria
from gloria.errors import DataError, DtypeError, EmptyTextError, OptionError, ShapeError
from gloria.types import TextEncoder

REPORTS = ["Small left-sided effusion.", "No effusion, no edema.", "Effusion of 1.5 cm."]
TINY = {"min_count": 1, "embedding_dim": 5, "width": 7}
ENCODERS = [GRUTextEncoder, SRUTextEncoder]


def build(make, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(REPORTS, **{**TINY, **options}).double().eval()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def matvec(matrix, vector):
    return [math.fsum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def naive_gru(encoder, vectors):
    """One text through one layer, number by number: the published equations."""
    rnn = encoder.network.layers
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w_in, w_hidden, b_in, b_hidden = (getattr(rnn, name).tolist() for name in names)
    width = len(b_in) // 3
    state, states = [0.0] * width, []
    for x in vectors:
        from_x = [a + b for a, b in zip(matvec(w_in, x), b_in, strict=True)]
        from_h = [a + b for a, b in zip(matvec(w_hidden, state), b_hidden, strict=True)]
        for k in range(width):
            reset = sigmoid(from_x[k] + from_h[k])
            update = sigmoid(from_x[width + k] + from_h[width + k])
            fresh = math.tanh(from_x[2 * width + k] + reset * from_h[2 * width + k])
            state = [*state[:k], (1 - update) * fresh + update * state[k], *state[k + 1 :]]
        states.append(state)
    return states


def naive_sru(encoder, vectors):
    """One text through all layers, number by number."""
    for layer in encoder.network.layers:
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        width = len(bias) // 2
        memory, states = [0.0] * width, []
        for x in vectors:
            products = matvec(weight, x)
            skipped = products[3 * width :] or x
            state = []
            for k in range(width):
                forget = sigmoid(products[width + k] + bias[k])
                reset = sigmoid(products[2 * width + k] + bias[width + k])
                memory[k] = forget * memory[k] + (1 - forget) * products[k]
                state.append(reset * math.tanh(memory[k]) + (1 - reset) * skipped[k])
            states.append(state)
        vectors = states
    return vectors


@pytest.mark.parametrize(
    ("make", "naive"), [(GRUTextEncoder, naive_gru), (SRUTextEncoder, naive_sru)]
)
def test_states_step_by_step(make, naive):
    encoder = build(make)
    for parameter in encoder.parameters():  # biases too
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    features = encoder(REPORTS)
    for text, report in enumerate(REPORTS):
        words = split(report)
        vectors = encoder.embedding.weight[encoder.vocabulary.numbers(words)].tolist()
        expected = torch.tensor(naive(encoder, vectors), dtype=torch.float64)
        torch.testing.assert_close(features.words[text, : len(words)], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(features.pooled[text], expected[-1], rtol=0, atol=1e-12)
        assert not features.words[text, len(words) :].any()
        assert features.word_mask[text].tolist() == [
            k < len(words) for k in range(features.words.shape[1])
        ]


@pytest.mark.parametrize("make", ENCODERS)
def test_padding_is_inert(make):
    """Alone, beside a longer text, and with other numbers where nothing is."""
    encoder = build(make, layers=3)
    alone = encoder([REPORTS[2]])
    together = encoder(REPORTS)
    length = len(alone.tokens[0])
    torch.testing.assert_close(together.words[2:, :length], alone.words, rtol=0, atol=1e-14)
    torch.testing.assert_close(together.pooled[2:], alone.pooled, rtol=0, atol=1e-14)
    texts = encoder.tokenize(REPORTS)
    texts.inputs["numbers"][texts.word_ids < 0] = 3
    assert torch.equal(encoder(texts).words, together.words)
    assert torch.equal(encoder(texts).pooled, together.pooled)


@pytest.mark.parametrize("make", ENCODERS)
def test_padding_gets_no_gradient(make):
    encoder = build(make)
    encoder(["effusion .", "effusion . . . edema"]).words[0].sum().backward()
    used = encoder.embedding.weight.grad.any(1).nonzero().flatten().tolist()
    assert used == sorted(encoder.vocabulary.numbers(["effusion", "."]))


def test_sru_gradients():
    layers = SRU(3, 4, layers=2).double()
    vectors = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layers, (vectors,))


def test_sru_dropout_is_for_training_and_one_mask_per_text():
    layers = SRU(6, 6, layers=1, dropout=0.5)
    seen = []
    layers.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layers(torch.ones(4, 9, 6))
    layers.eval()(torch.ones(4, 9, 6))
    assert set(seen[0].flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(seen[0], seen[0][:, :1].expand_as(seen[0]))
    assert (seen[1] == 1).all()


@pytest.mark.parametrize("make", ENCODERS)
def test_the_published_sizes_are_the_defaults(make):
    with torch.device("meta"):
        encoder = make(vocabulary=["effusion"])
    sizes = {GRUTextEncoder: (300, 1024, 1), SRUTextEncoder: (620, 2400, 4)}[make]
    layers = encoder.network.layers
    depth = layers.num_layers if make is GRUTextEncoder else len(layers)
    assert (encoder.embedding.embedding_dim, encoder.word_dim, depth) == sizes
    assert encoder.pooled_dim == encoder.word_dim


def test_vses_word_vectors_start_between_plus_and_minus_a_tenth():
    weights = build(GRUTextEncoder, embedding_dim=300).embedding.weight
    assert 0.09 < weights.abs().max() <= 0.1


def test_unknown_words_stay_words():
    encoder = build(GRUTextEncoder)
    features = encoder(["Huge EFFUSION, zzz"])
    assert features.tokens == [["Huge", "EFFUSION", ",", "zzz"]]
    assert features.word_mask.all()
    unknown = encoder.tokenize(["Huge EFFUSION, zzz"]).inputs["numbers"][0].tolist()
    assert unknown[0] == unknown[3] == 0
    assert unknown[1] > 0
    assert torch.equal(encoder(["qqq effusion"]).words, encoder(["zzz effusion"]).words)


def test_rare_words_teach_the_unknown_one():
    vocabulary = Vocabulary.of(REPORTS, min_count=2)
    assert vocabulary.words == [".", "effusion", "no"]
    assert vocabulary.numbers(["edema", "no"]) == [0, 3]


@pytest.mark.parametrize("text", ["", "  \n", "\t"])
def test_a_text_without_a_word_is_an_error(text):
    with pytest.raises(EmptyTextError, match=r"texts\[1\] has no word"):
        build(GRUTextEncoder)(["No edema.", text])


def test_bad_input_is_named():
    encoder = build(SRUTextEncoder)
    with pytest.raises(DtypeError, match="got one string"):
        encoder("No edema.")
    with pytest.raises(ShapeError, match="got none"):
        encoder([])
    with pytest.raises(OptionError, match="reports or vocabulary must be given"):
        GRUTextEncoder()
    with pytest.raises(DataError, match="no word comes 9 times in the 3 reports"):
        GRUTextEncoder(REPORTS, min_count=9)
    with pytest.raises(DataError, match="'edema' comes twice"):
        GRUTextEncoder(vocabulary=["edema", "edema"])
    with pytest.raises(DataError, match=r"none\.txt can't be read"):
        GRUTextEncoder(vocabulary="none.txt")


@pytest.mark.parametrize("make", ENCODERS)
def test_made_again_from_its_recipe_to_the_bit(make, tmp_path):
    encoder = build(make, layers=2, pooling="max")
    assert isinstance(encoder, TextEncoder)
    name, options, files = encoder.recipe(tmp_path)
    paths = {option: tmp_path / file for option, file in files.items()}
    again = gloria.create_text_encoder(name, **options, **paths).double().eval()
    again.load_state_dict(encoder.state_dict())
    before, after = encoder(REPORTS), again(REPORTS)
    assert torch.equal(before.words, after.words)
    assert torch.equal(before.pooled, after.pooled)
    assert before.tokens == after.tokens


def test_a_vocabulary_of_ones_own(tmp_path):
    (tmp_path / "words.txt").write_text("effusion\nödem\n", encoding="utf-8")
    encoder = GRUTextEncoder(REPORTS, vocabulary=str(tmp_path / "words.txt"), width=3)
    assert encoder.vocabulary.words == ["effusion", "ödem"]


def test_last_is_an_aggregator_like_any_other():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    assert Last()(values, mask, 1).tolist() == [2.0, 6.0, 0.0]
    assert gloria.create_aggregator("last")(values, None, 0).tolist() == [7.0, 8.0, 9.0]
