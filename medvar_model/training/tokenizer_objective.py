"""What a tokenizer's training minimises, and the care for its codebook between steps.

In: a process's part of a batch. Out: the loss and its terms. See `tokenizer` for the course of a run.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from medvar_model.checkpoints.checkpoint import Contents, load_weights
from medvar_model.loader import Examples, Loader
from medvar_model.machine import processes
from medvar_model.machine.processes import Process
from medvar_model.networks.codebook import count_codes, revive, usage
from medvar_model.networks.critic import Critic
from medvar_model.networks.pyramid import fit_codebook
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.training.adversary import Balance, critic_loss, opinion
from medvar_model.training.losses import pixel_loss
from medvar_model.training.objective import Draw, Forget, Objective
from medvar_model.training.perceptual import load_perceptual
from medvar_model.training.tokenizer_settings import TrainTokenizer

ALWAYS_KEPT = 3  # scales that scale dropout leaves (XQ-GAN)


class TokenizerObjective(Objective):
    """The tokenizer's loss and the care for its codebook.

    Args:
        spec: what to train.
        process: this process.
        begin_with: weights to begin with; None for random ones.
    """

    network: Tokenizer

    def __init__(self, spec: TrainTokenizer, process: Process, begin_with: Contents | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(spec.loop.seed)
        self.network = Tokenizer(spec.config, generator)
        if begin_with is not None:
            load_weights(self.network, begin_with.weights, spec.init_from)
        self.network.to(process.device)
        perceptual = load_perceptual(spec.perceptual_kind, spec.lpips_files)
        self.perceptual = None if perceptual is None else perceptual.to(process.device)
        self.critic: Critic | None = None
        if spec.adversary.weight > 0:
            self.critic = Critic(spec.config.image_channels, generator=generator).to(process.device)
            self.balance = Balance(self.network.decoder.exit.weight)
        self.counts_KV = torch.zeros(
            len(spec.config.scale_sides), spec.config.vocabulary, dtype=torch.int64, device=process.device
        )  # hits since the last revival for which they were enough, all processes together
        self.skips_parameters = (spec.unquantized > 0 and not spec.init_from) or self.critic is not None
        self._spec = spec
        self._quantizing = False
        self._critic_share = 0.0

    def forward(self, examples: Examples, draw: Draw) -> dict[str, Tensor]:
        """Return `loss` and its terms."""
        weights, images = self._spec.weights, examples.images
        if self._quantizing:
            outcome = self.network(images, self._kept(draw, len(examples)), self._spec.rotate)
            drawn, codes = outcome.images, outcome.vq_loss
            self.counts_KV += processes.total(outcome.counts)
        else:
            drawn = self.network.render(self.network.latents(images))
            codes = drawn.new_zeros((), dtype=torch.float32)
        pixels = pixel_loss(drawn, images, weights)
        losses = {"pixels": pixels, "codes": codes}
        loss = pixels + weights.codes * codes
        if self.perceptual is not None:
            with torch.autocast(images.device.type, enabled=False):
                losses["perceptual"] = self.perceptual(drawn.float(), images)
            loss = loss + weights.perceptual * losses["perceptual"]
        if self.critic is not None and self._critic_share > 0:
            with torch.autocast(images.device.type, enabled=False):
                loss = loss + self._contest(self.critic, images, drawn.float(), loss, losses)
        return {"loss": loss, **losses}

    def _kept(self, draw: Draw, images: int) -> Tensor | None:
        """Draw how many scales make up each image; None: all."""
        chance, scales = self._spec.scale_dropout, len(self._spec.config.scale_sides)
        if chance == 0 or scales <= ALWAYS_KEPT:
            return None
        uniform_B2 = torch.from_numpy(draw.uniforms(images, 2))
        some_B = ALWAYS_KEPT + (uniform_B2[:, 1] * (scales - ALWAYS_KEPT)).long()
        return torch.where(uniform_B2[:, 0] < chance, some_B, scales).to(self.counts_KV.device)

    def _contest(
        self, critic: Critic, images: Tensor, drawn: Tensor, others: Tensor, losses: dict[str, Tensor]
    ) -> Tensor:
        """Return what the critic adds to the loss: its opinion, weighed; and its own loss as gradient alone."""
        said, own = opinion(critic, drawn), critic_loss(critic, images, drawn)
        self.balance.see(others, said, len(images))
        losses |= {"opinion": said.detach(), "critic": own.detach(), "opinion_weight": self.balance.ratio}
        weight = self._spec.adversary.weight * self._critic_share * self.balance.ratio
        return weight * said + (own - own.detach())

    def before_step(self, samples_seen: int, forget: Forget) -> None:
        """Make the codebook from data when the share without quantization is over."""
        start = self._spec.unquantized * self._spec.loop.samples
        if self.critic is not None:
            self._critic_share = self._spec.adversary.share(samples_seen, self._spec.loop.samples)
            self.balance.forget()  # what a step left whose loss was not finite
        self._quantizing = samples_seen >= start or bool(self._spec.init_from)
        begins = self._quantizing and samples_seen - self._spec.loop.batch_size < start
        if begins and not self._spec.init_from and self._spec.codebook_images:
            self._start_codebook(forget)

    def after_step(self, samples_seen: int, examples: Examples, forget: Forget) -> None:
        """Settle the critic's weight; when it is time, move dead codes to vectors of the present batch."""
        if self.critic is not None and self._critic_share > 0:
            self.balance.settle()
        spec = self._spec
        every, until = spec.revive_every, spec.revive_until * spec.loop.samples
        due = every > 0 and samples_seen // every > (samples_seen - spec.loop.batch_size) // every
        if self._quantizing and due and samples_seen <= until:
            self._revive(samples_seen, examples, forget)

    def validate(self, batches: Iterator[Examples]) -> dict[str, float]:
        """Return mean loss, its terms, PSNR (dB, of the full range of grey), and the share of codes used."""
        config = self._spec.config
        names = ("pixels", "codes", "perceptual", "psnr")
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.counts_KV.device)
        counts_KV = torch.zeros_like(self.counts_KV)
        for examples in batches:
            images = examples.images
            outcome = self.network(images)
            drawn = outcome.images.float()
            counts_KV += count_codes(outcome.tokens, config.vocabulary)
            error_B = F.mse_loss(drawn.clamp(-1, 1), images, reduction="none").mean((1, 2, 3))
            psnr = (10 * torch.log10(4 / error_B.clamp(min=1e-10))).mean()
            perceptual = psnr.new_zeros(()) if self.perceptual is None else self.perceptual(drawn, images)
            pixels = pixel_loss(drawn, images, self._spec.weights)
            terms = torch.stack([pixels, outcome.vq_loss, perceptual, psnr])
            sums += torch.cat([terms, terms.new_ones(1)]).double() * len(examples)
        *totals, images_seen = processes.total(sums).tolist()
        means = {name: value / images_seen for name, value in zip(names, totals, strict=True)}
        if self.perceptual is None:
            del means["perceptual"]
        weights = self._spec.weights
        loss = means["pixels"] + weights.codes * means["codes"]
        loss += weights.perceptual * means.get("perceptual", 0)
        hits_BKV = self.network.pyramid.by_book(processes.total(counts_KV))
        used = (hits_BKV.sum(1) > 0).double().mean().item()
        return {"loss": loss, **means, "codes_used": used}

    def memory(self) -> dict[str, Tensor]:
        """Return the hits since the last revival, and the critic with its weight."""
        if self.critic is None:
            return {"counts": self.counts_KV}
        critic = {f"critic/{name}": value.detach() for name, value in self.critic.state_dict().items()}
        return {"counts": self.counts_KV, "balance": self.balance.ratio, **critic}

    def numbers(self) -> dict[str, float]:
        """Return share of used codes and perplexity of each scale since the last revival."""
        counted = self.counts_KV.any(1).nonzero().flatten().tolist()  # each book's hits start anew by themselves
        if not counted:
            return {}
        use = usage(self.counts_KV[counted])
        shares = {f"usage/scale_{k + 1:02d}": value for k, value in zip(counted, use.share, strict=True)}
        return shares | {
            f"perplexity/scale_{k + 1:02d}": value for k, value in zip(counted, use.perplexity, strict=True)
        }

    def _start_codebook(self, forget: Forget) -> None:
        """Place the codes by k-means: every process from the same images; the first one's result holds."""
        spec, pyramid = self._spec, self.network.pyramid
        device = self.counts_KV.device
        generator = torch.Generator(device=device).manual_seed(spec.loop.seed)
        batch, side = spec.loop.micro_batch or spec.loop.batch_size, spec.config.image_side
        loader = Loader(spec.data, "train", side, batch, spec.loop.seed, Process(1, 0, device))
        with torch.no_grad():
            parts = loader.passes(batch, spec.codebook_images)
            maps = [self.network.latents(examples.images) for examples in parts]
            fit_codebook(pyramid, torch.cat(maps), generator)
        codes = pyramid.codebook.codes
        processes.copy_from_main(codes.data)
        forget(codes, torch.ones(len(codes), dtype=torch.bool, device=device))

    def _revive(self, samples_seen: int, examples: Examples, forget: Forget) -> None:
        pyramid = self.network.pyramid
        codes = pyramid.codebook.codes
        generator = torch.Generator(device=codes.device).manual_seed(self._spec.loop.seed + samples_seen)
        size = self._spec.loop.micro_batch or len(examples)
        with torch.no_grad():
            maps = processes.gathered(self.network.latents(examples.part(0, size).images))
            wanted = pyramid.wanted(maps)
            dead = []
            for book, hits_KV in enumerate(pyramid.by_book(self.counts_KV)):
                # A random scale's vectors serve better than those of all, of which most belong to the finest.
                drawn = int(torch.randint(len(hits_KV), (1,), generator=generator, device=codes.device))
                candidates_NC = wanted[book + drawn * pyramid.n_books].flatten(0, 1)
                revival = revive(pyramid.codebook.of(book), hits_KV, candidates_NC, generator, self._spec.dead_below)
                pyramid.codebook.place(revival.codes, revival.dead, book)
                dead.append(revival.dead)
                if revival.judged:
                    hits_KV.zero_()
        processes.copy_from_main(codes.data)
        forget(codes, torch.cat(dead))
