#!/usr/bin/env bash
# zensical 0.0.73: the plugin that makes a site work offline has its pages load a script from a network.
#
# What one expects: with [project.plugins.offline] a site opened from disk, on a machine without a network, can be searched;
# that is what the plugin is for. What happens: every page asks for https://unpkg.com/iframe-worker/shim, without which
# browsers start no search from file://, and the build says nothing of it, with --strict neither.
# Who meets it: whoever ships documentation with a program, for machines that see no network.
# What helps: a file of one's own whose path has "iframe-worker" in it, under [project.extra] polyfills.
#
# Seen: "offline: asks unpkg.com True, built with --strict True; with a polyfill of one's own: asks unpkg.com False"
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check zensical==0.0.73
cd "$folder"
mkdir -p docs/assets
echo "# Page" >docs/index.md
echo "// a shim" >docs/assets/iframe-worker.js
printf '[project]\nsite_name = "a"\n[project.plugins.offline]\n' >zensical.toml
venv/bin/zensical build --strict >built.txt 2>&1 && strict=True || strict=False
asks() { grep -rq unpkg.com site/index.html && echo True || echo False; }
plain=$(asks)
rm -rf site
printf '[project]\nsite_name = "a"\n[project.plugins.offline]\n[project.extra]\npolyfills = ["assets/iframe-worker.js"]\n' >zensical.toml
venv/bin/zensical build --strict >built.txt 2>&1
told="offline: asks unpkg.com $plain, built with --strict $strict; with a polyfill of one's own: asks unpkg.com $(asks)"
echo "$told"
test "$told" = "offline: asks unpkg.com True, built with --strict True; with a polyfill of one's own: asks unpkg.com False"
