"""Virtual tokens in front of the word embeddings: prompt tuning (arXiv:2104.08691), P-tuning v1 (arXiv:2103.10385).

The networks and the files are PEFT's. Its forward and its generation are not used: PEFT 0.21 drops `position_ids`, so
that a left-padded row sees its prompt from afar; it counts `logits_to_keep` from the first virtual token; and of a
prompt encoder it saves the result alone, from which training cannot go on. Here a row in a padded batch is computed
just as it is alone, which is what the base computes for the concatenated embeddings.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftType
from peft.utils import load_peft_weights
from safetensors.torch import save_file

from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.messages import say
from softlaunch.run_directory import WEIGHTS_FILE
from softlaunch.tuning.adapter_model import AdapterModel, read_config

_ENCODER = "prompt_encoder."  # the prompt encoder's own tensors, beside the `prompt_embeddings` that PEFT reads


class SoftPromptModel(AdapterModel):
    """A frozen base with one or more soft prompts, one of them active."""

    prompt_encoder: Any
    prompt_tokens: Any
    word_embeddings: Any
    base_model: Any

    # -- the forward pass

    def prompt(self) -> torch.Tensor:
        """The active virtual tokens (num_virtual_tokens, hidden_size), with gradient where gradients are on."""
        encoder, tokens = self.prompt_encoder[self.active_adapter], self.prompt_tokens[self.active_adapter]
        tokens = tokens.to(self.device)
        with _float32(self.device):
            # A loaded adapter that is not to be trained is a table: the encoder's result
            return encoder.embedding(tokens) if self.active_peft_config.inference_mode else encoder(tokens[None])[0]

    def _with_prompt(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and mask with the prompt directly before every row's first real token.

        Not before padding on the left, which a sliding window would count.
        """
        embeds = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        mask = embeds.new_ones(embeds.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        prompt = self.prompt().to(embeds.dtype).expand(len(embeds), -1, -1)
        whole, mask = torch.cat([prompt, embeds], dim=1), torch.cat([mask.new_ones(prompt.shape[:2]), mask], dim=1)
        num_tokens, columns = prompt.shape[1], torch.arange(whole.shape[1], device=mask.device)
        padding = (mask[:, num_tokens:].cumsum(-1) == 0).sum(-1, keepdim=True)  # of each row, on its left
        # Where each column comes from: padding, then the prompt, then the rest, which stays where it is
        source = torch.where(columns < padding + num_tokens, columns - padding, columns)
        source = torch.where(columns < padding, columns + num_tokens, source)
        return whole.gather(1, source[..., None].expand_as(whole)), mask.gather(1, source)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: torch.Tensor | int = 0,
        **kwargs: Any,
    ) -> Any:
        """As the base's. Logits are those of the prompt too, unless `logits_to_keep` chooses columns of `input_ids`."""
        embeds, mask = self._with_prompt(input_ids, attention_mask, inputs_embeds)
        if isinstance(logits_to_keep, torch.Tensor):
            logits_to_keep = logits_to_keep + self.active_peft_config.num_virtual_tokens
        if labels is not None:
            labels = torch.nn.functional.pad(labels, (embeds.shape[1] - labels.shape[1], 0), value=-100)
        return self.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The base's `generate` behind the prompt; returns the ids of prompt row and answer as it does."""
        if self._adapters_disabled:
            return self.base_model.generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        with torch.no_grad():
            embeds, mask = self._with_prompt(input_ids, attention_mask, None)
        answers = self.base_model.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)
        return torch.cat([input_ids.repeat_interleave(len(answers) // len(input_ids), dim=0), answers], dim=1)

    # -- files

    def _write(self, directory: Path, names: list[str], state_dict: dict[str, torch.Tensor] | None) -> None:
        everything = self.state_dict() if state_dict is None else state_dict
        for name in names:
            folder = directory / ("" if name == "default" else name)
            folder.mkdir(parents=True, exist_ok=True)
            config, start = self.peft_config[name], f"prompt_encoder.{name}."
            trained = {k.removeprefix(start): v.detach().float().cpu() for k, v in everything.items() if start in k}
            if config.peft_type == PeftType.P_TUNING and not config.inference_mode:
                tensors = {_ENCODER + k: v.contiguous() for k, v in trained.items()}
                tensors["prompt_embeddings"] = self._encoded(name, trained)
            else:
                tensors = {"prompt_embeddings": trained["embedding.weight"]}
            save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
            mode, config.inference_mode = config.inference_mode, True
            config.save_pretrained(str(folder))
            config.inference_mode = mode

    @torch.no_grad()
    def _encoded(self, name: str, trained: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the encoder computes from these tensors: its own may be split over processes, which this one is not."""
        with torch.device("meta"):  # draws no random numbers, which would set this process apart from the others
            encoder = type(self.prompt_encoder[name])(self.peft_config[name])
        encoder.load_state_dict(trained, assign=True)
        return encoder(self.prompt_tokens[name][None])[0].contiguous()

    def _read(self, directory: Path, adapter_name: str, is_trainable: bool) -> None:
        tensors = load_peft_weights(str(directory), device="cpu")
        if adapter_name not in self.peft_config:
            self.add_adapter(adapter_name, read_config(directory, trainable=is_trainable))
        config, encoder = self.peft_config[adapter_name], self.prompt_encoder[adapter_name]
        encoder.requires_grad_(not config.inference_mode)
        width, found = self.config.get_text_config().hidden_size, tensors["prompt_embeddings"].shape[1]
        if found != width:
            raise ValueError(
                say(
                    "its virtual tokens have {found} numbers, the embeddings of the base {width}",
                    found=found,
                    width=width,
                )
            )
        if config.peft_type != PeftType.P_TUNING or config.inference_mode:
            encoder.embedding.load_state_dict({"weight": tensors["prompt_embeddings"].float()})
            return
        encoded = {k.removeprefix(_ENCODER): v for k, v in tensors.items() if k.startswith(_ENCODER)}
        if not encoded:
            raise CheckpointError(
                "{path}: PEFT has saved what the prompt encoder computed, not the encoder: it can be evaluated, but "
                "not be trained further",
                path=directory,
            )
        encoder.load_state_dict(encoded)


def set_prompt(model: SoftPromptModel, embeddings: torch.Tensor, adapter_name: str = "default") -> None:
    """Make `embeddings` (num_virtual_tokens, hidden_size) the table of a prompt without an encoder."""
    if model.peft_config[adapter_name].peft_type != PeftType.PROMPT_TUNING:
        raise ArgumentError("the virtual tokens of a prompt encoder cannot be set")
    with torch.no_grad():
        weight = cast(Any, model.prompt_encoder[adapter_name]).embedding.weight
        weight.copy_(embeddings.to(weight.device))


def _float32(device: torch.device) -> AbstractContextManager:
    """As the base's precision is none of the encoder's business."""
    return torch.autocast(device.type, enabled=False)
