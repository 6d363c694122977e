"""`streamliner heal`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, console, print_json
from streamliner.format import number
from streamliner.verbs.heal import heal_model


def heal(
    cut: Annotated[str, typer.Argument(help="Folder that streamliner cut or prune wrote.", metavar="CUT")],
    dense: Annotated[str, typer.Option(help="The model that it was cut from.", metavar="MODEL")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the healed checkpoint.", metavar="HEALED")],
    run: Annotated[
        str | None,
        typer.Option(help="Run folder (default: HEALED.run).", metavar="RUN", rich_help_panel=options.OUTPUT),
    ] = None,
    network: options.Network = "block",
    network_depth: options.NetworkDepth = 1,
    init: options.Init = "first",
    residual: options.Residual = True,
    loss: options.LossWeights = None,
    top_k: options.TopK = None,
    network_input: options.NetworkInput = "dense",
    lora: options.Lora = 0,
    data: options.Data = None,
    sequence_length: options.TrainingLength = None,
    validation_windows: options.ValidationWindows = 16,
    tokens: options.Tokens = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    batch_size: options.TrainingBatch = 32,
    micro_batch: options.MicroBatch = 1,
    lr: options.LearningRate = 2e-4,
    min_lr: options.MinLearningRate = 5e-6,
    warmup: options.Warmup = 0.03,
    weight_decay: options.WeightDecay = 1e-3,
    clip: options.Clip = 5.0,
    mixed_precision: options.MixedPrecision = None,
    validations: options.Validations = 20,
    save_every: options.SaveEvery = None,
    track: options.Track = None,
    seed: options.Seed = 0,
    no_verify: options.NoVerify = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train what takes the place of removed blocks. A killed run continues with the same command.

    Each run of removed blocks gets a lightweight network in the place of the kept block before it: with 8 blocks
    removed in a row, 9 blocks become 1, and the healed model has 8 blocks fewer than the dense one, as the cut one has.
    """

    from streamliner.model.load import silenced_transformers
    from streamliner.model.session import open_session

    settings = options.model_settings(dense, revision, trust_remote_code, dtype, device)
    healing = options.heal_settings(
        network=network,
        network_depth=network_depth,
        init=init,
        residual=residual,
        loss=loss,
        top_k=top_k,
        network_input=network_input,
        lora=lora,
        data=data,
        sequence_length=sequence_length,
        validation_windows=validation_windows,
        tokens=tokens,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch=micro_batch,
        learning_rate=lr,
        min_learning_rate=min_lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        mixed_precision=mixed_precision,
        validations=validations,
        save_every=save_every,
        track=track,
        seed=seed,
    )
    with silenced_transformers():
        result = heal_model(
            open_session(settings),
            cut,
            healing,
            output,
            run or f"{output.rstrip('/')}.run",
            overwrite=overwrite,
            verified=not no_verify,
            reporter=Terminal(quiet),
        )
    if not result:  # one process of several prints
        return
    if json:
        print_json(result)
    else:
        print_healed(result)


def print_healed(result: dict[str, Any]) -> None:
    """What became of the blocks, and what it brought."""
    from rich.table import Table

    gaps = [f"{gap['stop'] - gap['start']} blocks become {len(gap['places'])}" for gap in result["gaps"]]
    before, after = result["blocks_before"], result["blocks_after"]
    title = f"{before} blocks dense, {after} healed" + (f" ({', '.join(gaps)})" if gaps else "")
    perplexity = {name: value for name, value in result["validation_perplexity"].items() if value is not None}
    if perplexity:
        table = Table("", *perplexity, title=title)
        table.add_row("perplexity on held-out windows", *map(number, perplexity.values()))
        console.print(table)
    else:
        console.print(title)
    training = result["training"]
    kept = f"; kept the state after step {training['best_step']}, the best of those that were validated"
    losses = f", validation loss {training['first_loss']:.4g} before and {training['best_loss']:.4g} after"
    console.print(
        f"Trained on {training['tokens']:,} tokens in {training['steps']} steps"
        + (f"{kept}{losses}." if perplexity else ", without validation."),
        soft_wrap=True,
    )
    if perplexity and perplexity["healed"] > perplexity["cut"]:
        console.print(
            "The healed model is worse than the cut one on the held-out windows: train longer, or with --loss lm.",
            soft_wrap=True,
        )
    if result["custom_code"]:
        console.print(
            "No stock class has such a network, so the checkpoint brings its own code: load it with "
            "trust_remote_code=True. Other engines, and GGUF, cannot hold it; --network block can be served anywhere.",
            soft_wrap=True,
        )
    elif result["parameters_for_nothing"]:
        console.print(
            f"Each network is kept as a stock block whose attention gives zero: {result['parameters_for_nothing']:,} "
            "parameters and their part of the cache are carried for nothing.",
            soft_wrap=True,
        )
    check = result["verification"]
    if check is None:
        console.print("Not verified (--no-verify).")
    else:
        console.print(
            f"Verified in {check['dtype']} on {check['tokens']} tokens: reloads with clean keys; logits equal within "
            f"{check['max_logit_difference']:.2g} to the healed model's"
            + ("; generation with cache equals without." if check["cached_generation"] else "."),
            soft_wrap=True,
        )
    console.print(f"Written to {result['output']}", soft_wrap=True)
    console.print(
        f"Judge it on other text: streamliner evaluate {result['output']} --dense MODEL --perplexity SOURCE",
        soft_wrap=True,
    )
