"""Compile a program for a target and read the result."""

import time
from pathlib import Path

from piat_jax.core.files import write_file
from piat_jax.plan.estimate import Estimate, Memory
from piat_jax.plan.hlo import parse
from piat_jax.plan.kernels import read_loops
from piat_jax.plan.programs import Program
from piat_jax.plan.targets import Target


def estimate(program: Program, target: Target, *, hlo: Path | None = None) -> Estimate:
    """Compile a program for the devices in its shapes, which takes minutes, and estimate its requirements.

    Args:
      program: what to compile.
      target: the type of these devices.
      hlo: a folder for the text of the optimised program; None = not kept.
    """
    began = time.perf_counter()
    compiled = program.lower().compile()
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    if hlo is not None:
        write_file(hlo / f"{program.name.replace(' ', '_')}.hlo", lambda file: file.write(text.encode()))
    stats = compiled.memory_analysis()
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.generated_code_size_in_bytes,
        program.beside,
    )
    return Estimate(
        name=program.name,
        target=target,
        devices=program.devices,
        examples=program.examples,
        memory=memory,
        root=read_loops(parse(text)),
        compile_seconds=seconds,
        steps=program.name == "train",
    )
