"""Peaks of known GPUs, as their makers print them. No torch, no measuring.

Dense multiplication of 16-bit floats with 32-bit sums; datasheets often print twice this, "with
sparsity". A name that is not certainly one of these devices has no listed peak: no figure is
better than that of another device.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ListedPeak:
    """Peaks of a device whose name has all of `words`."""

    words: str
    teraflops: float
    """Dense 16-bit TFLOP/s."""
    terabytes_per_second: float | None
    """Memory bandwidth in TB/s; None if its source does not print one."""
    source: str
    bfloat16: bool = True
    """Whether bfloat16 is as fast as float16; if not, the device does not have it."""


_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_AMD = "https://www.amd.com/en/products/accelerators/instinct/"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_RTX_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_RTX_PRO_BLACKWELL = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/design-visualization/"
    "quadro-product-literature/NVIDIA-RTX-Blackwell-PRO-GPU-Architecture-v1.0.pdf"
)
_GA102 = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
_H800 = "https://www.techpowerup.com/gpu-specs/h800-pcie-80-gb.c4181"
_H20 = "https://www.techpowerup.com/gpu-specs/h20.c4420"

# the first entry whose words all occur wins, so the more specific name stands first
LISTED_PEAKS = (
    ListedPeak("GB300", 2500, None, _NVIDIA + "gb300-nvl72/"),
    ListedPeak("GB200", 2500, 8.0, _NVIDIA + "gb200-nvl72/"),
    ListedPeak("B300", 2250, None, _NVIDIA + "hgx/"),
    ListedPeak("B200", 2250, 8.0, _NVIDIA + "hgx/"),
    ListedPeak("B100", 1800, None, "https://resources.nvidia.com/en-us-blackwell-architecture"),
    ListedPeak("H200 NVL", 836, 4.8, _NVIDIA + "h200/"),
    ListedPeak("H200 PCIE", 836, 4.8, _NVIDIA + "h200/"),
    ListedPeak("H200", 989, 4.8, _NVIDIA + "h200/"),
    ListedPeak("H100 NVL", 835, 3.9, _NVIDIA + "h100/"),
    ListedPeak("H100 PCIE", 756, 2.0, _NVIDIA + "h100/"),
    ListedPeak("H100 HBM3", 989, 3.35, _NVIDIA + "h100/"),  # the driver's name for SXM
    ListedPeak("H800 NVL", 989, None, _H800),
    ListedPeak("H800", 756, None, _H800),
    ListedPeak("H20", 148, None, _H20),
    ListedPeak("A100 40GB", 312, 1.555, _NVIDIA + "a100/"),
    ListedPeak("A100", 312, 2.0, _NVIDIA + "a100/"),
    ListedPeak("A800", 312, 2.0, _NVIDIA + "a100/"),  # an A100 with a slower link
    ListedPeak("A40", 149.7, 0.696, _NVIDIA + "a40/"),
    ListedPeak("A30", 165, None, _NVIDIA + "products/a30-gpu/"),
    ListedPeak("L40S", 362, 0.864, _NVIDIA + "l40s/"),
    ListedPeak("L4", 121, 0.3, _NVIDIA + "l4/"),
    ListedPeak("V100", 125, None, _NVIDIA + "v100/", bfloat16=False),
    ListedPeak("RTX PRO 6000 BLACKWELL MAX Q", 438.9, None, _RTX_PRO_BLACKWELL),
    ListedPeak("RTX PRO 6000 BLACKWELL", 503.8, None, _RTX_PRO_BLACKWELL),
    ListedPeak("RTX 6000 ADA", 364, None, _ADA),
    ListedPeak("RTX A6000", 154.85, None, _GA102),
    ListedPeak("RTX 5090", 209.5, 1.79, _RTX_BLACKWELL),
    ListedPeak("RTX 4090", 165.2, 1.01, _ADA),
    ListedPeak("RTX 3090", 71, 0.936, _GA102),
    ListedPeak("MI355X", 2500, None, _AMD + "mi350/mi355x.html"),
    ListedPeak("MI325X", 1307.4, None, _AMD + "mi300/mi325x.html"),
    ListedPeak("MI300X", 1307.4, 5.3, _AMD + "mi300/mi300x.html"),
    ListedPeak("MI300A", 980.6, None, _AMD + "mi300/mi300a.html"),
    # two dies, of which each is a device of its own
    ListedPeak("MI250X", 191.5, None, _AMD + "mi200/mi250x.html"),
)

# words that make a name another device: a slice of one, or a slower or faster relative
_OTHER_DEVICE = {"MIG", "LAPTOP", "MOBILE", "TI", "D", "SUPER"}


def listed_peak(device_name: str) -> ListedPeak | None:
    """The entry of the device that its driver calls so, or None if there is none.

    Whole words are compared, so an L40S is not an L4 and a GB200 is not a B200.
    """
    words = set(re.findall(r"[A-Z0-9]+", device_name.upper()))
    if words & _OTHER_DEVICE:
        return None
    for entry in LISTED_PEAKS:
        if words.issuperset(entry.words.split()):
            return entry
    return None
