"""Models from files: exported programs and Hugging Face directories give what their source module gives."""

import io
import json
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from networks import KINDS, ConvNet, EagerAttention, SharedLayer, hardware, initialised, normal
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from precalloc import allocate, profile, validate
from precalloc.errors import DependencyError, ModelError
from precalloc.network.models import load_model, model_hash

CHIP = hardware()
IDS = torch.randint(1, 40, (8, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < torch.tensor([[6], [4], [6], [6], [2], [6], [6], [6]])).long()
TOKENS = {"input_ids": IDS, "attention_mask": MASK}


def initialised_normed(model):
    generator = torch.Generator().manual_seed(5)
    for module in initialised(model, seed=1).modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


class Normed(nn.Module):
    """Batch norms that fold, one whose layer is used twice, and one that follows no layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.twice, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 3, 2), nn.BatchNorm2d(3, affine=False)
        self.first, self.linear, self.last = nn.BatchNorm1d(75), nn.Linear(75, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        y = self.twice(self.body(x))
        y = self.up_norm(self.up(self.norm(y) + y))
        return self.last(self.linear(self.first(y.flatten(1))))


class Recurrent(nn.Module):
    """Two bidirectional layers, with the mean state classified."""

    def __init__(self, kind):
        super().__init__()
        self.recurrent = kind(3, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.recurrent(x)[0].mean(1))


SOURCES = {
    "batch norms": (Normed, (2, 6, 6)),
    "convolutions": (ConvNet, (2, 6, 6)),
    "attention": (EagerAttention, (3, 4)),
    "layer called twice": (SharedLayer, (6,)),
    "LSTM": (lambda: Recurrent(nn.LSTM), (6, 3)),
    "GRU": (lambda: Recurrent(nn.GRU), (6, 3)),
}


def export(model, arguments, path, keyword=False):
    shapes = {name: {0: torch.export.Dim("batch", min=1, max=64)} for name in arguments}
    args, kwargs = ((), arguments) if keyword else (tuple(arguments.values()), {})
    torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=shapes), path)


def assert_same_plans(model, other, data):
    """Sites, profile and K map are the same."""
    one, two = (profile(m, data, CHIP, batch_size=4) for m in (model, other))
    assert one.sites == two.sites
    for kind in KINDS:
        np.testing.assert_allclose(two.damage[kind], one.damage[kind], rtol=1e-4, atol=1e-6 * one.damage[kind].max())
    plans = [allocate(p, "7x", hardware=CHIP) for p in (one, two)]
    np.testing.assert_allclose(plans[1].repetitions, plans[0].repetitions, rtol=1e-4)
    assert [site.site.name for site in plans[0]] == [site.site.name for site in plans[1]]


@pytest.mark.parametrize("name", SOURCES)
def test_exported_programs_give_the_same_plan(name, tmp_path):
    make, shape = SOURCES[name]
    model, x = initialised_normed(make()), normal(2, 8, *shape)
    export(model, {"x": x[:4]}, tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert_same_plans(model, loaded, x)


def bert(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=40, max_position_embeddings=8, num_labels=3, **sizes, **options)
    return BertForSequenceClassification(config).eval()


def gpt():
    torch.manual_seed(0)
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8, **tokens)).eval()


def test_an_exported_transformer_gives_the_same_plan(tmp_path):
    model = bert()
    export(model, TOKENS, tmp_path / "bert.pt2", keyword=True)
    assert_same_plans(model, load_model(str(tmp_path / "bert.pt2")), TOKENS)


@pytest.mark.parametrize(("make", "task"), [(bert, "classification"), (gpt, "language-model")])
def test_hugging_face_directories_give_the_same_plan(make, task, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    assert loaded.config.use_cache is False
    assert profile(loaded, TOKENS, CHIP, margins=0).provenance.task == task
    assert_same_plans(model, loaded, TOKENS)


def test_a_causal_language_model_is_judged_by_its_next_tokens():
    model = gpt()
    model.config.use_cache = True
    found = profile(model, TOKENS, CHIP, batch_size=3)
    labels = IDS.masked_fill(MASK == 0, -100)
    with torch.no_grad():
        expected = float(model(**TOKENS, labels=labels).loss)  # mean over all tokens, in transformers' own words
    assert found.clean_loss == pytest.approx(expected, rel=1e-5)
    assert model.config.use_cache is True
    assert "lm_head" in [site.name for site in found.sites]  # the tied embedding as output head
    kmap = allocate(found, "1e9x", hardware=CHIP).kmap()
    simulated = validate(model, TOKENS | {"labels": labels}, kmap, seeds=2)
    assert simulated.loss.clean_loss == pytest.approx(expected, rel=1e-5)
    assert simulated.loss.loss == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        best = model(**TOKENS).logits.argmax(-1)[:, :-1]
    counted = labels[:, 1:] != -100
    right = float((best == labels[:, 1:])[counted].double().mean())
    assert simulated.clean_accuracy == pytest.approx(right)
    assert simulated.score == "token accuracy"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    """Damage of weights in half precision is near that of the same weights in single precision."""
    half = bert().to(dtype)
    single = bert().to(dtype).float()
    one, two = (profile(m, TOKENS, CHIP, batch_size=8) for m in (single, half))
    for kind in KINDS:
        assert np.all(np.isfinite(two.damage[kind]))
        assert two.damage[kind].sum() == pytest.approx(one.damage[kind].sum(), rel=0.1)
    kmap = allocate(two, "1e6x", hardware=CHIP).kmap()
    assert validate(half, TOKENS, kmap, seeds=2).accuracy >= 0.5


def edited(path, change):
    """Rewrite an archive with members changed by ``change(name, content)``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


class Harm:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def with_pickled_weight(name, content):
    if not name.endswith("weights_config.json"):
        return content
    config = json.loads(content)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


def with_harmful_inputs(name, content):
    return pickle.dumps(Harm()) if "sample_inputs" in name else content


def with_harmful_size(name, content):
    return content.replace(b"Symbol(", b"exec('x') or Symbol(") if "models/" in name else content


def with_harmful_call(name, content):
    return content.replace(b"torch.ops.aten.relu.default", b"torch.os.getcwd") if "models/" in name else content


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (with_pickled_weight, r"holds pickled objects \(.*\), which are not read"),
        (with_harmful_inputs, r"cannot be read as an exported program"),
        (with_harmful_size, r"has a size 'exec\('x'\) or Symbol.*that is no arithmetic"),
        (with_harmful_call, r"(calls '.*getcwd.*', which is no operator|cannot be read as an exported program)"),
        (lambda n, c: b"{" if "models/" in n else c, r"cannot be read as an exported program"),
    ],
)
def test_exported_programs_that_could_run_code_are_refused(change, pattern, tmp_path):
    path = tmp_path / "net.pt2"
    export(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), {"input": normal(1, 4, 6)}, path)
    edited(path, change)
    with pytest.raises(ModelError, match=pattern) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def test_other_files_are_no_exported_programs(tmp_path):
    with pytest.raises(ModelError, match=r"none\.pt2 does not exist"):
        load_model(str(tmp_path / "none.pt2"))
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ModelError, match=r"text\.pt2 cannot be read as an exported program"):
        load_model(str(tmp_path / "text.pt2"))
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, buffer)
    (tmp_path / "weights.pt2").write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match=r"weights\.pt2 holds no exported program"):
        load_model(str(tmp_path / "weights.pt2"))
    with pytest.raises(ModelError, match=r"holds its weights already\. Leave out --weights"):
        load_model(str(tmp_path), "weights.safetensors")


def config_with(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lambda d: (d / "config.json").unlink(), r"holds no config\.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json is not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), r"is no model's configuration"),
        (
            lambda d: (d / "model.safetensors").unlink(),
            r"holds no \.safetensors weights, and pickled ones are not read",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"torn"), r"cannot be loaded: "),
        (lambda d: config_with(d, auto_map={"AutoModel": "code.Net"}), r"needs Python code of its own \(auto_map\)"),
        (lambda d: config_with(d, architectures=[]), r"names 0 architectures; it must name one"),
        (lambda d: config_with(d, architectures=["Nonesuch"]), r"is a 'Nonesuch', which transformers [\d.]+ does not"),
        (lambda d: config_with(d, architectures=["BertConfig"]), r"is a 'BertConfig', which transformers"),
        (
            lambda d: config_with(d, architectures=["BertForQuestionAnswering"]),
            r"lacks weights of .*qa_outputs.*random",
        ),
    ],
)
def test_directories_that_hold_no_model(spoil, pattern, tmp_path):
    bert().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=pattern) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    bert().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match=r"pip install 'precalloc\[huggingface\]'"):
        load_model(str(tmp_path))


def test_outputs_of_the_body_alone_must_be_chosen():
    with pytest.raises(ModelError, match=r"several outputs: last_hidden_state \(8, 6, 16\), pooler_output \(8, 16\)"):
        profile(bert().bert, TOKENS, CHIP)
    found = profile(bert().bert, TOKENS, CHIP, output="pooler_output")
    assert found.provenance.task == "classification"


@pytest.mark.parametrize("name", ["batch norms", "convolutions"])
def test_modules_of_exported_programs_are_as_their_files(name, tmp_path):
    make, shape = SOURCES[name]
    model, x = initialised_normed(make()), normal(2, 8, *shape)
    module = torch.export.export(model, (x[:4],), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    before = str(module.graph), {key: value.clone() for key, value in module.state_dict().items()}, module(x)
    export(model, {"x": x[:4]}, tmp_path / "net.pt2")
    file = load_model(str(tmp_path / "net.pt2"))
    assert_same_plans(model, module, x)
    assert model_hash(module) == model_hash(file)
    one, two = (profile(m, x, CHIP, batch_size=3) for m in (module, file))
    plan = allocate(one, "7x", hardware=CHIP)
    assert plan.kmap().digest == allocate(two, "7x", hardware=CHIP).kmap().digest
    assert validate(module, x, plan, seeds=1) == validate(file, x, plan, seeds=1)
    assert str(module.graph) == before[0]
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before[1].items())
    assert torch.equal(module(x), before[2])


def test_exported_programs_that_cannot_be_replayed_say_what_to_do():
    program = torch.export.export(initialised(ConvNet(), seed=1), (normal(1, 4, 2, 6, 6),))
    with pytest.raises(
        ModelError, match=r"ExportedProgram is no model that can be run.*of an exported program, module\(\)"
    ):
        profile(program, normal(2, 4, 2, 6, 6), CHIP)
    with pytest.raises(ModelError, match=r"Module '0' is an exported program within another module"):
        profile(nn.Sequential(program.module()), normal(2, 4, 2, 6, 6), CHIP)
