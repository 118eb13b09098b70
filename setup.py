from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    for line in (ROOT / "d2go_fbnetv5" / "version.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("d2go_fbnetv5/version.py has no __version__")


def config_files() -> list[str]:
    """The configurations, lazy ones of Detectron2 too, and the weights that some of them start from."""
    files = [
        path for path in (ROOT / "configs").rglob("*") if path.suffix in (".yaml", ".safetensors", ".py")
    ]
    return sorted(str(path.relative_to(ROOT / "configs")) for path in files)


setup(
    name="d2go_fbnetv5",
    version=version(),
    description="FBNetV5: neural architecture search for many vision tasks in one run",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["d2go_fbnetv5", "d2go_fbnetv5.*"]),
        "d2go_fbnetv5.tools",
        "d2go_fbnetv5.configs",
    ],
    # As in D2Go: the command line tools and the configurations live at the top level and ship inside the package.
    package_dir={"d2go_fbnetv5.tools": "tools", "d2go_fbnetv5.configs": "configs"},
    package_data={
        "d2go_fbnetv5": ["py.typed", "pretrained/*/*"],
        "d2go_fbnetv5.configs": config_files(),
        "d2go_fbnetv5.export": ["cpp/*.hpp"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "pycocotools>=2.0.8",
        "opencv-python-headless>=4.13",
        "pillow>=10.1",
        "numpy>=2.0",
        "scipy>=1.13",
        "scikit-learn>=1.5",
        "pyyaml>=6.0",
        "rich>=13.0",
        "safetensors>=0.4",
        "tensorboard>=2.14",
        "matplotlib>=3.9",
    ],
    extras_require={
        "dev": [
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=0.29",
            "mypy>=2.0",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
        ],
        "distillation": ["timm>=1.0"],
        "hub": ["huggingface_hub>=0.23"],
        "transformers": ["transformers>=5.0"],
        "onnx": ["onnxruntime>=1.18"],
        "export": ["executorch>=1.0", "torchao>=0.14", "onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.18"],
    },
    entry_points={
        "console_scripts": [
            "d2go_fbnetv5.start = d2go_fbnetv5.tools.start:cli",
            "d2go_fbnetv5.train_net = d2go_fbnetv5.tools.train_net:cli",
            "d2go_fbnetv5.visualize = d2go_fbnetv5.tools.visualize:cli",
            "d2go_fbnetv5.flops = d2go_fbnetv5.tools.flops:cli",
            "d2go_fbnetv5.predict = d2go_fbnetv5.tools.predict:cli",
            "d2go_fbnetv5.front = d2go_fbnetv5.tools.front:cli",
            "d2go_fbnetv5.extract = d2go_fbnetv5.tools.extract:cli",
            "d2go_fbnetv5.export = d2go_fbnetv5.tools.export:cli",
            "d2go_fbnetv5.pseudo_label = d2go_fbnetv5.tools.pseudo_label:cli",
            "d2go_fbnetv5.convert_weights = d2go_fbnetv5.tools.convert_weights:cli",
            "d2go_fbnetv5.latency_table = d2go_fbnetv5.tools.latency_table:cli",
            "d2go_fbnetv5.benchmark = d2go_fbnetv5.tools.benchmark:cli",
        ]
    },
)
