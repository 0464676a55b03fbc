"""PIPO: language models that read and write two tokens a step (arXiv 2605.27255)."""

from transformers import AutoConfig, AutoModelForCausalLM

from pipo.model.config import PipoConfig
from pipo.model.pipo import PipoForCausalLM, PipoOutput

AutoConfig.register(PipoConfig.model_type, PipoConfig)
AutoModelForCausalLM.register(PipoConfig, PipoForCausalLM)

__version__ = "0.1.0"
__all__ = ["PipoConfig", "PipoForCausalLM", "PipoOutput"]
