"""Pythae: the model and the trainer of a library like this one, on PyTorch."""

import logging
import tempfile

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch_contenders import OPTIMIZERS, channels_first, networks


class Encoder(BaseEncoder):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        loc, log_variance = self.network(x).chunk(2, dim=-1)
        return ModelOutput(embedding=loc, log_covariance=log_variance)


class Decoder(BaseDecoder):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z):
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


class Turns(TrainingCallback):
    def __init__(self, report):
        self.report = report

    def on_log(self, training_config, logs, **kwargs):
        self.report(logs["train_epoch_loss"])


def train(workload, x, epochs, report):
    """Its trainer as it comes."""
    logging.disable(logging.INFO)
    torch.manual_seed(0)
    encoder, decoder = networks(workload)
    x = channels_first(x)
    config = VAEConfig(tuple(x.shape[1:]), workload.latent_size, reconstruction_loss="bce")
    name, settings = OPTIMIZERS[workload.optimizer]
    with tempfile.TemporaryDirectory() as folder:
        BaseTrainer(
            VAE(config, Encoder(encoder), Decoder(decoder)),
            BaseDataset(x, labels=torch.zeros(len(x))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=workload.batch_size,
                num_epochs=epochs,
                optimizer_cls=name,
                optimizer_params=settings,
                learning_rate=1e-3,
                no_cuda=True,
            ),
            callbacks=[Turns(report)],
        ).train()
