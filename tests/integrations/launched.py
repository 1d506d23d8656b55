"""Runs the Trainer example as one of several processes, and compares what each of them learned."""

import runpy
from pathlib import Path

import torch
import torch.distributed as dist

script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "trainer.py"))
mine = torch.tensor([script["main"]()], dtype=torch.float64)
all_of_them = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
dist.all_gather(all_of_them, mine)
assert len(all_of_them) == 2
assert torch.equal(*all_of_them)
if dist.get_rank() == 0:
    print(f"both processes learned {mine.item():.6f}")
dist.destroy_process_group()
