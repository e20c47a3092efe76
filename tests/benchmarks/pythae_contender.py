"""Pythae: the model and the trainer of a library like this one, on PyTorch."""

import logging

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler
from torch_contenders import OPTIMIZERS, channels_first, networks
from workloads import LATENT_SIZE


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


def train(workload, x, epochs, report):
    """Its trainer's epochs, without progress bar, copies of the best model and files."""
    logging.disable(logging.INFO)
    torch.manual_seed(0)
    encoder, decoder = networks(workload)
    x = channels_first(x)
    config = VAEConfig(tuple(x.shape[1:]), LATENT_SIZE, reconstruction_loss="bce")
    model = VAE(config, Encoder(encoder), Decoder(decoder))
    name, settings = OPTIMIZERS[workload.optimizer]
    trainer = BaseTrainer(
        model,
        BaseDataset(x, labels=torch.zeros(len(x))),
        training_config=BaseTrainerConfig(
            per_device_train_batch_size=workload.batch_size,
            num_epochs=epochs,
            optimizer_cls=name,
            optimizer_params=settings,
            learning_rate=1e-3,
            no_cuda=True,
        ),
    )
    trainer.set_optimizer()
    trainer.callback_handler = CallbackHandler([], model)
    for epoch in range(1, epochs + 1):
        report(trainer.train_step(epoch))
