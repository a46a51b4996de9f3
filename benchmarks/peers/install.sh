#!/usr/bin/env bash
# Builds an environment with the real learn2learn 0.2.0 (and higher and torchopt where they install), for the tests and benchmarks
# that compare with them:
#
#     benchmarks/peers/install.sh FOLDER [--own-torch]
#     FOLDER/bin/python -m pytest tests/compat/test_learn2learn.py
#
# The new environment sees all packages of the python that is calling (`python`, or $PYTHON), torch above all, through one .pth file;
# --own-torch downloads torch and torchvision into it instead. Fails where learn2learn cannot be built or imported; the other two are
# only tried.
set -euo pipefail

folder=${1:?usage: benchmarks/peers/install.sh FOLDER [--own-torch]}
python=${PYTHON:-python}
top=$(cd "$(dirname "$0")/../.." && pwd)

"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check --quiet)
if [ "${2:-}" = --own-torch ]; then
    "${pip[@]}" install -e "$top[test]"
else
    "$python" -c 'import torch, torchvision' || { echo "$python has no torch to share: activate its environment, or pass --own-torch" >&2; exit 1; }
    "$python" - "$folder" "$top" <<'PY'
import pathlib, sys, sysconfig
inside = next(pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages"), pathlib.Path(sys.argv[1]) / "Lib/site-packages")
shared = sysconfig.get_path("purelib")
(inside / "shared.pth").write_text(f"{sys.argv[2]}\nimport site; site.addsitedir({shared!r})\n", encoding="utf-8")
PY
fi

# What learn2learn imports may not replace the numpy or torch that everything else is built on.
"$folder/bin/python" - >"$folder/constraints.txt" <<'PY'
from importlib.metadata import version
print(*(f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy", "scipy")), sep="\n")
PY

# The 0.2.0 source holds C code that cython 0.29 made for older Pythons: make it anew. Cython 3 refuses the .pyx files, and the
# build_ext option is what has setup.py read them at all. The old setup.py needs a setuptools from before 80.
"${pip[@]}" install 'cython<3' 'setuptools<80' wheel
CYTHON_FORCE_REGEN=1 "${pip[@]}" install --use-pep517 --no-build-isolation --no-deps learn2learn==0.2.0 \
    --config-settings="--global-option=build_ext"
"${pip[@]}" install --constraint "$folder/constraints.txt" 'gym>=0.14' scipy tqdm requests
# qpth's own list of what it needs is not valid; learn2learn's MAML uses none of its solvers, so that the bare package is enough.
"${pip[@]}" install --no-deps qpth

for peer in higher torchopt; do
    "${pip[@]}" install --constraint "$folder/constraints.txt" "$peer" 2>"$folder/$peer.log" || echo "$peer does not install here (see $folder/$peer.log)" >&2
done
"$folder/bin/python" -W ignore - <<'PY'
import importlib
from importlib.metadata import version
import learn2learn  # has to be there
for name in ("torch", "learn2learn", "higher", "torchopt"):
    try:
        importlib.import_module(name)
        print(name, version(name))
    except Exception as error:
        print(name, "is not usable:", error)
PY
