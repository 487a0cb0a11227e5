"""Train a detector on folders of real and generated pictures, after the audit of those folders.

    python -m experiments fit --config experiments/configs/distildire.yaml --data.root FOLDER

prints what the files of the set give away and what the spectrum alone reaches, trains, calibrates on pictures
that were held out, judges on others still, and leaves a folder for `detect --detector`, with `audit.json` and
`judged.json` beside the weights.
"""

import json
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch import Tensor

from detect.calibration import THRESHOLD
from detect.detector import Detector, DetectorError, load
from detect.distildire import DiffusionDetector, DireDetector, DistilDireDetector
from detect.equalise import Pixels
from detect.metrics import auroc, scorecard
from detect.network import NetworkDetector
from detect.resnet import ResNet
from experiments.detection_data import DetectionPictures
from experiments.schedules import cosine_after_warmup
from imaging.batch.reports import write_report
from imaging.whole import write_whole


class DetectorTraining(L.LightningModule):
    """Train a detector, and keep it in a folder, calibrated and judged.

    Args:
        detector: what is trained; its own `epochs` and `batch_size` give way to the trainer's and the data's.
        out: the folder.
        teacher: folder of a trained `dire` detector, for `distildire` alone.
        distillation: weight of the teacher's features beside the labels.
        maps: folder in which the maps of a diffusion model are kept between epochs and runs.
        initial: safetensors of a torchvision ResNet that the network starts from, such as ImageNet's.
        weight_decay: of AdamW.
        warmup_steps: after which the rate of `detector` falls by a cosine.
    """

    def __init__(
        self,
        detector: NetworkDetector,
        out: str = "runs/detector",
        teacher: str | None = None,
        distillation: float = 1.0,
        maps: str | None = None,
        initial: str | None = None,
        weight_decay: float = 1e-4,
        warmup_steps: int = 30,
    ) -> None:
        super().__init__()
        self.detector, self.out = detector, Path(out)
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
        if teacher is not None:
            taught = load(teacher)
            if not isinstance(detector, DistilDireDetector) or not isinstance(taught, DireDetector):
                raise DetectorError(f"a dire detector teaches a distildire one; {teacher} is {taught.kind}")
            detector.taught_by(taught, distillation)
        if maps is not None and isinstance(detector, DiffusionDetector):
            detector.remember(maps)
        if initial is not None:
            if not isinstance(getattr(detector, "network", None), ResNet):
                raise DetectorError(f"{detector.kind} has no ResNet that could start from {initial}")
            detector.network.start_from(load_file(initial))
        self._logits: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: tuple[Pixels, Tensor], index: int) -> Tensor:
        pixels, labels = batch
        with torch.no_grad():
            lessons = self.detector.lessons(pixels / 255)
        generator = torch.Generator().manual_seed(self.global_step)
        terms = self.detector.losses(self.detector.augmented(lessons, generator), labels)
        self.log_dict({f"loss_{name}": term.detach() for name, term in terms.items()})
        return self.detector.total(terms)

    def validation_step(self, batch: tuple[Pixels, Tensor], index: int) -> None:
        self._logits.append((self.detector(batch[0] / 255).float(), batch[1]))

    def on_validation_epoch_end(self) -> None:
        parts = zip(*self._logits, strict=True)
        logits, labels = (self.all_gather(torch.cat(each)).flatten() for each in parts)
        self._logits.clear()
        if 0 < labels.sum() < len(labels):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
            self.log("val_loss", loss, prog_bar=True)
            self.log("val_auroc", auroc(labels.cpu().numpy(), logits.cpu().numpy()), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.detector.learned(), lr=self.detector.learning_rate, weight_decay=self.weight_decay
        )
        return cosine_after_warmup(self, optimizer, warmup=self.warmup_steps)

    @rank_zero_only
    def on_fit_end(self) -> None:
        given = getattr(self.trainer, "datamodule", None)
        if not isinstance(given, DetectionPictures) or given.audit is None:
            return
        print(finish(self.detector, given, self.out))


def finish(detector: Detector, given: DetectionPictures, out: Path) -> str:
    """Calibrate and judge a detector that has learned, keep it in a folder, and return figures for people.

    Raises ValueError where it cannot be calibrated; what it has learned is kept before.
    """
    assert given.audit is not None
    name = Path(given.root).name
    if detector.learns:
        detector.trained_on = f"{len(given.learn)} pictures of {name}"
        detector.sides = (given.learn.side, given.learn.side)
    detector.equaliser = given.equaliser
    detector.save(out)
    write_report([given.audit], out / "audit.json")
    held_out, judged = given.calibrate, given.judge
    logits = detector.calibrate(held_out.images(), held_out.labels, data=f"held out of {name}")
    detector.save(out)
    card = scorecard(
        judged.labels.numpy(),
        detector.predict_proba(judged.images())[:, 1].numpy(),
        threshold=THRESHOLD,
        calibration_real=detector.calibrated().probabilities(logits[held_out.labels == 0]).numpy(),
        groups=judged.groups,
    )
    write_whole(out / "judged.json", json.dumps(asdict(card), indent=2) + "\n")
    row = given.audit.levels[-1]
    marks = f" (contaminated: {', '.join(row.contaminated)})" if row.contaminated else ""
    return (
        f"{detector.kind} on {card.real} real and {card.generated} generated pictures, {row.level}: "
        f"AUROC {card.auroc:.3f}, balanced accuracy {card.balanced_accuracy:.3f}; the spectrum alone "
        f"reaches {row.spectrum.auroc:.3f}, everything about the files {row.leaks[-1].auroc:.3f}{marks}"
    )
