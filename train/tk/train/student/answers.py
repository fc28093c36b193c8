"""What a teacher says of K views of every training crop, asked once instead of in every epoch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.preprocess import Image, spec_to_json
from tk.train.embedder.cache import Cache
from tk.train.embedder.features import cache_features
from tk.train.embedder.frozen import files_digest
from tk.train.run.device import uses_bfloat16
from tk.train.run.distributed import barrier, rank, world
from tk.train.run.folder import library_versions
from tk.train.run.sampling import sample_rng
from tk.train.student.config import StudentConfig
from tk.train.student.teacher import Teacher
from tk.train.student.views import SharedViews


class Answers:
    """Answers to K views of each crop; epoch e takes view e mod K.

    The views follow from `split_seed`, not from `seed`: so runs of several seeds share them.

    Args:
        config: of the run; its `teacher_views` is K.
        pictures: training pictures.
        views: draws them; the teacher's canvas is its last.
    """

    def __init__(
        self,
        config: StudentConfig,
        teacher: Teacher,
        pictures: Cache[Image],
        views: SharedViews,
    ) -> None:
        self.config, self.teacher = config, teacher
        self.pictures, self.views = pictures, views
        self.count = config.teacher_views
        self._rows: NDArray[np.float32] | None = None

    def rng(self, index: int, epoch: int) -> np.random.Generator:
        """Numbers for the augmentation of a crop in an epoch."""
        return sample_rng(self.config.split_seed, epoch % self.count, index)

    def compute(self, device: torch.device) -> None:
        """Ask the teacher, or take answers that lie there; all processes call it."""
        config, teacher = self.config, self.teacher
        half = uses_bfloat16(config.precision, device)

        def embed(canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
            images = torch.from_numpy(canvases).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                answers = teacher.answer(images)
            return answers.cpu().numpy()

        self._rows = cache_features(
            config.teacher_cache or config.out / "answers",
            "answers",
            rows=len(self.pictures) * self.count,
            size=teacher.feature_size + len(teacher.order),
            key={
                "weights": teacher.digest,
                "order": teacher.order,
                # Not the student's: its view is made from the largest, and students may share.
                "canvases": [spec_to_json(s) for s in (self.views.largest, self.views.specs[-1])],
                "aug": (config.aug, config.area, config.split_seed, self.count),
                "bfloat16": half,
                "crops": files_digest(self.pictures.crops),
                "versions": library_versions(),
            },
            canvas=self._canvas,
            embed=embed,
            batch_size=64,
            views=self.count,
            part=(rank(), world()),
            barrier=barrier,
        )

    def of(self, index: int, epoch: int) -> NDArray[np.float32]:
        """Answer to the view of a crop in an epoch: (T + C,) float32."""
        if self._rows is None:
            raise RuntimeError("the teacher was not asked yet: call compute")
        return np.array(self._rows[index * self.count + epoch % self.count])

    def _canvas(self, row: int) -> Image:
        index, view = divmod(row, self.count)
        return self.views(self.pictures[index], self.rng(index, view))[-1]
