"""Learning-rate schedules that Lightning steps through."""

import lightning as L
import torch


def cosine_after_warmup(module: L.LightningModule, optimizer: torch.optim.Optimizer, *, warmup: int) -> dict:
    """What `configure_optimizers` returns: linear warm-up, then half a cosine down to a hundredth at the
    trainer's last step."""
    total = int(module.trainer.estimated_stepping_batches)
    rate = optimizer.param_groups[0]["lr"]
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - warmup), eta_min=rate / 100)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[warmup])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
