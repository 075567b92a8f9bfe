"""Training: labelled sequences in, a checkpoint with a head for each level out, and the level that is enough.

``run_training(TrainingSettings(...))`` is what ``rd-hf train`` runs, and ``run_prediction(PredictionSettings(...))``
what ``rd-hf predict`` runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names

if TYPE_CHECKING:
    from rd_hf.training.job import run_training
    from rd_hf.training.predict import run_prediction
    from rd_hf.training.predict_settings import PredictionSettings, PredictionSummary
    from rd_hf.training.settings import TrainingSettings, TrainingSummary

__all__ = [
    "PredictionSettings",
    "PredictionSummary",
    "TrainingSettings",
    "TrainingSummary",
    "run_prediction",
    "run_training",
]

__getattr__ = lazy_names(
    __name__,
    {
        "PredictionSettings": "rd_hf.training.predict_settings",
        "PredictionSummary": "rd_hf.training.predict_settings",
        "run_prediction": "rd_hf.training.predict",
        "TrainingSettings": "rd_hf.training.settings",
        "TrainingSummary": "rd_hf.training.settings",
        "run_training": "rd_hf.training.job",
    },
)
