"""Options and arguments that several verbs have, or that are long to say."""

from pathlib import Path
from typing import Annotated

import typer

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="RECIPE [a.b=v ...]", help="A recipe, then overrides of its keys.")
]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="The recipe, when it is not the first argument.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")]
MaxLengthOption = Annotated[int | None, typer.Option(min=8, help="Longest sequence in tokens; else what the model holds.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]
TemplateOption = Annotated[bool, typer.Option(help="Score with another chat template than the model was trained on.")]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="Start so many processes of this machine, one for each GPU.")]
ConfigOption = Annotated[
    str | None, typer.Option("--accelerate-config", metavar="NAME|FILE", help="How they share the work, such as ddp or fsdp2.")
]
BENCHMARKS = "rewardbench, rewardbench2, rm_bench, judgebench, llmbar, rmb"
DataOption = Annotated[str | None, typer.Option("--data", help="Evaluate on this file, directory or Hub dataset.")]
