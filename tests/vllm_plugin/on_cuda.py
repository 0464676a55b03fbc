"""vLLM's settings as they come out on a machine with an H100: `on_cuda.py FOLDER SETTINGS`, the last a list in JSON.

Prints what each of the settings comes to, or what refuses it. vLLM's own CUDA platform decides; what it asks of a
driver is answered here, and its kernels are empty modules, so nothing can be computed.
"""

import json
import sys
from types import ModuleType

KERNELS = ("_C", "_C_stable_libtorch", "vllm_flash_attn._vllm_fa2_C", "vllm_flash_attn._vllm_fa3_C")


def h100():
    """vLLM's platform; its modules must not have been imported before."""
    sys.modules |= {f"vllm.{name}": ModuleType(f"vllm.{name}") for name in KERNELS}
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class H100(NonNvmlCudaPlatform):
        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(9, 0))
        get_device_name = classmethod(lambda cls, device_id=0: "NVIDIA H100 80GB HBM3")
        get_device_total_memory = classmethod(lambda cls, device_id=0: 80 << 30)
        device_count = classmethod(lambda cls: 8)

    return H100()


def come_to(folder, settings):
    from vllm import EngineArgs

    try:
        config = EngineArgs(folder, **settings).create_engine_config()
    except Exception as error:
        return {"refused": str(error)}
    compilation = config.compilation_config
    return {"graphs": compilation.cudagraph_mode.name, "compiled": compilation.mode.name}


def main():
    import vllm.platforms

    vllm.platforms._current_platform = h100()
    print(json.dumps([come_to(sys.argv[1], settings) for settings in json.loads(sys.argv[2])]))


if __name__ == "__main__":
    main()
