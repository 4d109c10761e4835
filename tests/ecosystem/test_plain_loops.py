"""Training loops as the examples of PyTorch write them: every loss and parameter is that of torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from training import ADAM, ADAMW, SGD, Make, Pair, assert_equal_bits, assert_learns, cnn, copies, digits, text

import fusedoptim

Result = tuple[list[float], list[Tensor]]


def classify_digits(make: Make) -> Result:
    model = cnn()
    optimizer = make(model.parameters())
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    loader = DataLoader(digits(512), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(3):
        model.train()
        for data, target in loader:
            optimizer.zero_grad()
            loss = F.nll_loss(F.log_softmax(model(data), dim=1), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    return losses, copies(model)


class CharModel(nn.Module):
    """An LSTM over bytes whose decoder shares the embedding, as in the word language model."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(256, 64)
        self.drop = nn.Dropout(0.1)
        self.rnn = nn.LSTM(64, 64, num_layers=2, dropout=0.1)
        self.decoder = nn.Linear(64, 256)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(self, data: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        output, hidden = self.rnn(self.drop(self.encoder(data)), hidden)
        return F.log_softmax(self.decoder(self.drop(output)).view(-1, 256), dim=1), hidden


def model_language(make: Make) -> Result:
    torch.manual_seed(0)
    model = CharModel()
    optimizer = make(model.parameters())
    columns = text(8 * 256).view(8, -1).t().contiguous()  # (time, batch)
    hidden = tuple(torch.zeros(2, 8, 64) for _ in range(2))
    losses = []
    for _ in range(2):
        for i in range(0, len(columns) - 1, 16):
            data, targets = columns[i : i + 16], columns[i + 1 : i + 17]
            hidden = tuple(h.detach() for h in hidden)
            optimizer.zero_grad()
            output, hidden = model(data[: len(targets)], hidden)
            loss = F.nll_loss(output, targets.reshape(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            losses.append(loss.item())
    return losses, copies(model)


def dcgan(make: Make) -> Result:
    """Two networks against each other. The discriminator's gradients pile up over two backward passes."""
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.ConvTranspose2d(16, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 1, 4, 2, 1, bias=False), nn.Sigmoid(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, 64, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 1, 4, bias=False), nn.Sigmoid(), nn.Flatten(0),
    )  # fmt: skip
    criterion = nn.BCELoss()
    for_d, for_g = make(discriminator.parameters()), make(generator.parameters())
    losses = []
    for real, _ in DataLoader(digits(384), batch_size=32):
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        discriminator.zero_grad()
        loss_real = criterion(discriminator(real), ones)
        loss_real.backward()
        fake = generator(torch.randn(len(real), 16, 1, 1))
        loss_fake = criterion(discriminator(fake.detach()), zeros)
        loss_fake.backward()
        for_d.step()
        generator.zero_grad()
        loss_g = criterion(discriminator(fake), ones)
        loss_g.backward()
        for_g.step()
        losses += [loss_real.item(), loss_fake.item(), loss_g.item()]
    return losses, copies(generator) + copies(discriminator)


def reinforce(make: Make) -> Result:
    """A policy that learns to walk to the right end of a line; one step for each episode."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 128), nn.Dropout(0.1), nn.ReLU(), nn.Linear(128, 2, bias=False))
    optimizer = make(policy.parameters())
    lengths = []
    for _ in range(30):
        place, log_probs, rewards = 0, [], []
        while abs(place) < 4 and len(rewards) < 40:
            state = F.one_hot(torch.tensor(abs(place)), 4).float() * (1 if place >= 0 else -1)
            choice = Categorical(logits=policy(state))
            action = choice.sample()
            log_probs.append(choice.log_prob(action))
            place += 2 * int(action) - 1
            rewards.append(float(place == 4) * 10 - 0.1)
        returns: list[float] = []
        for reward in reversed(rewards):
            returns.insert(0, reward + 0.99 * (returns[0] if returns else 0.0))
        weights = torch.tensor(returns)
        weights = (weights - weights.mean()) / (weights.std() + 1e-7)
        optimizer.zero_grad()
        torch.stack([-p * w for p, w in zip(log_probs, weights, strict=True)]).sum().backward()
        optimizer.step()
        lengths.append(float(len(rewards)))
    return lengths, copies(policy)


EXAMPLES: list[Callable[[Make], Result]] = [classify_digits, model_language, dcgan, reinforce]


@pytest.mark.parametrize("pair", [SGD, ADAM, ADAMW], ids=lambda pair: pair.name)
@pytest.mark.parametrize("example", EXAMPLES)
def test_losses_and_parameters_are_those_of_torch(example: Callable[[Make], Result], pair: Pair) -> None:
    losses, params = example(pair.ours)
    wanted, wanted_params = example(pair.theirs)
    assert losses == wanted
    assert_equal_bits(params, wanted_params)
    if example in (classify_digits, model_language):
        assert_learns(losses)


@pytest.mark.parametrize("example", [classify_digits, model_language])
def test_adam_beside_the_default_of_torch(example: Callable[[Make], Result]) -> None:
    """Its for-loop rounds elsewhere, and a training amplifies that: the losses drift apart, slowly."""
    losses, _ = example(lambda params: fusedoptim.Adam(params, lr=1e-3))
    wanted, _ = example(lambda params: torch.optim.Adam(params, lr=1e-3))
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(wanted), rtol=1e-3, atol=0)
