"""Molecules in SMILES: solubility, toxicity, pairs; parted by scaffold.

Molecules of one Bemis-Murcko scaffold are all in one split, the largest groups in train (Wu et al.
2018, MoleculeNet, arXiv:1703.00564): what is held out has skeletons that training never saw.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pretraining import Drawn, trained
from row import Make, Row

Molecule = dict[str, str]

_SPLITS = ("train", "validation", "test")
_TOKENS = (  # Schwaller et al. 2019, arXiv:1811.02633
    r"\[[^\]]+\]|Br|Cl|%[0-9]{2}|[A-Za-z0-9()=#.+\-\\/:~@?>*$]"
)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PAD, _MASK, _LONGEST = 0, 4, 128
_PAIRS = {"train": 4000, "validation": 500, "test": 1000}


# Data


def solubility(source: Path, out: Path) -> None:
    """Delaney's molecules, and the logarithm of how much of each dissolves in water."""
    measured = "measured log solubility in mols per litre"
    text = (source / "molecules" / "delaney-processed.csv").read_text("utf8")
    rows = csv.DictReader(io.StringIO(text))
    found = [{"smiles": row["smiles"].strip(), "label": row[measured]} for row in rows]
    for split, part in by_scaffold(found).items():
        _write(out / f"{split}.csv", part)


def toxicity(source: Path, out: Path) -> None:
    """Tox21's molecules, and 12 assays: active (1), inactive (0), or not measured (empty). Those
    that RDKit cannot read are left out."""
    for split, part in by_scaffold(_tox21(source)).items():
        _write(out / f"{split}.csv", part)


def activity_pairs(source: Path, out: Path) -> None:
    """Pairs of Tox21's molecules, each active in some assay: 1 where one assay has both active, 0
    where each was measured inactive in all assays of the other. As many of either; the molecules of
    a pair are of one split. The rule is made here: nobody measured pairs."""
    for split, part in by_scaffold(_tox21(source)).items():
        rng, rows = random.Random(0), part
        active = [{k for k, v in row.items() if k != "smiles" and v and float(v)} for row in rows]
        quiet = [{k for k, v in row.items() if k != "smiles" and v == "0"} for row in rows]
        places = [i for i, found in enumerate(active) if found]
        wanted, pairs = _PAIRS[split] // 2, {}
        counts = {0: 0, 1: 0}
        for _ in range(400 * wanted):
            a, b = rng.sample(places, 2)
            apart = active[a] <= quiet[b] and active[b] <= quiet[a]
            label = 1 if active[a] & active[b] else 0 if apart else None
            if label is not None and counts[label] < wanted and (a, b) not in pairs:
                pairs[a, b] = label
                counts[label] += 1
        _write(
            out / f"{split}.csv",
            [
                {"smiles": rows[a]["smiles"], "other": rows[b]["smiles"], "label": str(label)}
                for (a, b), label in pairs.items()
            ],
        )


def _tox21(source: Path) -> list[Molecule]:
    from rdkit import Chem, rdBase

    data = gzip.decompress((source / "molecules" / "tox21.csv.gz").read_bytes()).decode()
    with rdBase.BlockLogs():
        return [
            {"smiles": row.pop("smiles"), **{k: v for k, v in row.items() if k != "mol_id"}}
            for row in csv.DictReader(io.StringIO(data))
            if Chem.MolFromSmiles(row["smiles"]) is not None
        ]


def by_scaffold(rows: Sequence[Molecule]) -> dict[str, list[Molecule]]:
    """Of 10 molecules 8, 1 and 1: groups of one scaffold, from the largest on, go where there is
    room still."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    groups: dict[str, list[Molecule]] = defaultdict(list)
    with rdBase.BlockLogs():
        for row in rows:
            groups[MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(row["smiles"]))].append(row)
    parts: dict[str, list[Molecule]] = {split: [] for split in _SPLITS}
    room = {"train": 0.8 * len(rows), "validation": 0.1 * len(rows), "test": float(len(rows))}
    for _, group in sorted(groups.items(), key=lambda one: (-len(one[1]), one[0])):
        split = next(s for s in _SPLITS if len(parts[s]) + len(group) <= room[s])
        parts[split] += group
    return parts


def _write(path: Path, rows: Sequence[Molecule]) -> None:
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# An encoder


def smiles_bert(shared: Path, out: Path) -> None:
    """A small BERT over SMILES, pre-trained on Tox21's training molecules without their labels, 400
    batches of 32: masked tokens (Devlin et al. 2019), and from the pooled vector ten descriptors
    that RDKit computes, as ChemBERTa-2 does it (Ahmad et al. 2022, arXiv:2209.01712)."""
    from transformers import BertConfig, BertModel

    molecules = [row["smiles"] for row in by_scaffold(_tox21(shared / "data"))["train"]]
    tokenizer = tokenizer_of(molecules)
    ids = tokenizer(molecules, truncation=True, max_length=_LONGEST)["input_ids"]
    described = descriptors(molecules)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=4,
            max_position_embeddings=_LONGEST,
            pad_token_id=_PAD,
            **sizes,
        )
    )
    heads = torch.nn.ModuleDict(
        {
            "body": model,
            "tokens": torch.nn.Linear(128, len(tokenizer)),
            "descriptors": torch.nn.Linear(128, described.shape[1]),
        }
    )
    trained(heads, 400, lambda drawn: _masked(heads, ids, described, drawn), batch=32)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _masked(heads: Any, ids: Sequence[Sequence[int]], described: Any, drawn: Drawn) -> Any:
    places = drawn(len(ids)).tolist()
    longest = max(len(ids[i]) for i in places)
    tokens = torch.tensor([[*ids[i], *[_PAD] * (longest - len(ids[i]))] for i in places])
    there = tokens != _PAD
    hidden = there & (tokens >= len(_SPECIAL)) & (torch.rand(tokens.shape) < 0.15)
    outputs = heads["body"](tokens.masked_fill(hidden, _MASK), attention_mask=there.long())
    found = heads["tokens"](outputs.last_hidden_state[hidden])
    errors = heads["descriptors"](outputs.pooler_output) - described[places]
    return F.cross_entropy(found, tokens[hidden]) + errors.square().mean()


def tokenizer_of(molecules: Iterable[str]) -> Any:
    """A token for each atom in brackets, element, bond and ring that these have."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(_TOKENS), behavior="isolated")
    pieces = {piece for one in molecules for piece, _ in split.pre_tokenize_str(one)}
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, *sorted(pieces)))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = split
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    names |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=_LONGEST, **names)


def descriptors(molecules: Sequence[str]) -> torch.Tensor:
    """(molecules, 10), each with mean 0 and deviation 1."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import Descriptors

    names = ("MolLogP", "TPSA", "MolWt", "NumHDonors", "NumHAcceptors", "RingCount", "MolMR")
    names += ("NumRotatableBonds", "FractionCSP3", "NumAromaticRings")
    computed: list[Callable[[Any], float]] = [getattr(Descriptors, name) for name in names]
    with rdBase.BlockLogs():
        read = map(Chem.MolFromSmiles, molecules)
        found = torch.tensor([[compute(one) for compute in computed] for one in read])
    return ((found - found.mean(0)) / found.std(0)).float()


_ASSAYS = (
    *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
    *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
)
DATA: dict[str, Make] = {
    "solubility": solubility,
    "toxicity": toxicity,
    "activity-pairs": activity_pairs,
}
MODELS: dict[str, Make] = {"smiles-bert": smiles_bert}
ROWS = {
    "solubility": Row("molecule-property", "smiles-bert", "solubility", steps=300),
    "solubility-as-text": Row(
        *("text-classification", "minilm", "solubility"),
        options=("--task-arg", "kind=number", "--column", "text=smiles"),
        methods=("lora",),
    ),
    "toxicity": Row(
        *("molecule-property", "smiles-bert", "toxicity"),
        steps=300,
        options=("--task-arg", "kind=activity", "--task-arg", f"assays={','.join(_ASSAYS)}"),
    ),
    "drug-pairs": Row("molecule-pair", "smiles-bert", "activity-pairs", steps=300),
    "drug-pairs-own-towers": Row(
        *("molecule-pair", "smiles-bert", "activity-pairs"),
        steps=300,
        options=("--task-arg", "towers=own"),
        methods=("lora",),
    ),
}
