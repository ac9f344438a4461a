#!/usr/bin/env bash
# Installs kmidi into .venv of the folder it is started in, the root of the project; a second start
# only checks. SkyPilot's machines bring uv along, which also fetches a Python where theirs is old.
set -euo pipefail

PATH="$HOME/.local/bin:$PATH"
wanted=('.[export]' awscli)  # awscli copies to and from buckets where they cannot be mounted

if command -v uv >/dev/null; then
    [ -x .venv/bin/python ] || uv venv --python 3.12 .venv
    uv pip install --python .venv/bin/python -c constraints.txt -e "${wanted[@]}"
else
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet -c constraints.txt -e "${wanted[@]}"
fi
.venv/bin/python - <<'CHECK'
import torch

gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(f"PyTorch {torch.__version__} sees {', '.join(gpus) or 'no GPU'}")
CHECK
