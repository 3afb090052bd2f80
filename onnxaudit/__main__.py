"""``python -m onnxaudit``."""

from onnxaudit.cli import main

main()
