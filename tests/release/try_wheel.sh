#!/usr/bin/env bash
# The README's first commands with an installed wheel, from an empty folder: try_wheel.sh VENV
set -euo pipefail
venv=$(cd "$1" && pwd)
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cd "$empty"
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS=1
unset PYTHONPATH

python - "$venv" <<'PYTHON'
import sys
from pathlib import Path

import d2go_fbnetv5

package = Path(d2go_fbnetv5.__file__)
if Path(sys.argv[1]) not in package.parents:
    sys.exit(f"{package} is tried, not the wheel in {sys.argv[1]}")
PYTHON

few="SOLVER.WARMUP_ITERS 2 SOLVER.IMS_PER_BATCH 8"
d2go_fbnetv5.train_net --config-file search_digits.yaml --num-processes 2 OUTPUT_DIR output/demo $few \
    SOLVER.MAX_ITER 20 SEARCH.ARCH_WARMUP_ITERS 12 SEARCH.SAMPLES_PER_RANK 2 \
    SEARCH.EVAL.MAX_IMAGES 16 SEARCH.EVAL.RANDOM_TOPOLOGIES 2 SEARCH.EVAL.BN_ITERS 2
d2go_fbnetv5.visualize output/demo
d2go_fbnetv5.visualize output/demo --output topologies.svg
d2go_fbnetv5.visualize --named bifpn --stages 7
d2go_fbnetv5.flops --topology output/demo/topologies.json --task det
d2go_fbnetv5.flops --model FBNetV5-A-DET --size 213x320
python -c "
from d2go_fbnetv5 import create_model, list_models
names = list_models(pretrained=True)
assert names, 'the wheel has no trained model'
for name in names: create_model(name, pretrained=True)"
d2go_fbnetv5.train_net --config-file det/det_digits.yaml OUTPUT_DIR output/det_digits $few \
    SOLVER.MAX_ITER 20 FBNETV5_DATA.DATASETS.digit_scenes_val.num_images 16
python -c "
import cv2
from d2go_fbnetv5.data import DigitScenes
cv2.imwrite('photo.png', DigitScenes('val', 104, 1)[0]['image'].permute(1, 2, 0).numpy()[:, :, ::-1])"
d2go_fbnetv5.predict photo.png --run output/det_digits
d2go_fbnetv5.export --run output/det_digits --format torchscript
for file in output/demo/report.html topologies.svg predictions/predictions.json output/det_digits/torchscript/model.pt; do
    [ -s "$file" ] || { echo "the commands left no $file" >&2; exit 1; }
done
echo "the wheel works: $(d2go_fbnetv5.flops --family N | head -1)"
