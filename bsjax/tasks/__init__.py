"""What is trained: the engine knows examples, groups and sums; a task says the rest."""

from bsjax.tasks.autoencoder import RECONSTRUCTIONS, Autoencoder
from bsjax.tasks.classification import Classification
from bsjax.tasks.contrastive import Contrastive, nt_xent
from bsjax.tasks.from_loss import from_loss
from bsjax.tasks.language_model import LanguageModel
from bsjax.tasks.protocol import Task

__all__ = ["RECONSTRUCTIONS", "Autoencoder", "Classification", "Contrastive", "LanguageModel", "Task", "from_loss"]
__all__ += ["nt_xent"]
