#!/bin/sh
# Install cropscore from SOURCE below PREFIX, in the versions of its constraints.txt.
#
#   VARIANT=cuda cluster/install.sh SOURCE PREFIX
#
# VARIANT (cpu or cuda) is what PyTorch is to be built for; TORCH_INDEX, where there is one, the
# index that has it. From SOURCE/wheels alone, without the network, where cropscore's wheel is there.
set -eu
source=$1
prefix=$2
variant=${VARIANT:-cpu}

python=$(python -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
export PYTHONPATH="$prefix/lib/$python/site-packages"
pip() { python -m pip install --no-cache-dir --prefix "$prefix" -c "$source/constraints.txt" "$@"; }

if ls "$source"/wheels/cropscore_ray-*.whl >/dev/null 2>&1; then
  pip --no-index --find-links "$source/wheels" cropscore-ray
else
  [ -z "${TORCH_INDEX:-}" ] || pip --index-url "$TORCH_INDEX" torch torchvision
  pip "$source"
fi

built_for=$(python -c 'import torch; print("cuda" if torch.version.cuda else "cpu")')
if [ "$built_for" != "$variant" ]; then
  echo "PyTorch is built for $built_for, not $variant: TORCH_INDEX names the index that has it" >&2
  exit 1
fi
"$prefix/bin/cropscore" --version
