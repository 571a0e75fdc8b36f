"""How HF PEFT calls LoRA's tensors and hyper-parameters."""

from trimtab.core.names import Names

LORA_NAMES = Names(
    peft_type="LORA",
    tensors={"A": "lora_A.weight", "B": "lora_B.weight"},
    fields={
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "rslora": "use_rslora",
    },
    transposed=True,
    shift="lora_B.bias",
    biases="lora_only",
    tokens=True,
    parameters=True,
    at={
        "embedding": {"A": "lora_embedding_A", "B": "lora_embedding_B"},
        "conv": {"A": "lora_A.weight", "B": "lora_B.weight"},
    },
    patches="A",
    starts=("pissa", "olora"),
)
