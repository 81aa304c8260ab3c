#!/bin/bash
# Tells an Istio that was installed by plain manifests about Gatehouse: adds mesh-provider.yaml to the mesh config and
# leaves the rest of it as it is. Run twice it changes nothing. A revision's ConfigMap is its argument: istio-REVISION.
# Helm and istioctl keep the mesh config themselves: docs/install.md has their commands.
set -euo pipefail
map=${1:-istio}
entry=$(sed -n '/^- name: gatehouse$/,$p' "$(dirname "$0")/mesh-provider.yaml")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

kubectl -n istio-system get configmap "$map" -o jsonpath='{.data.mesh}' >"$work/mesh"
if grep -Eq '^ *- name: "?gatehouse"? *$' "$work/mesh"; then
	echo "the mesh knows gatehouse already: look at its entry in ConfigMap $map if it was made by hand"
	exit
fi
case $(grep -c '^extensionProviders:' "$work/mesh" || true) in
0) { cat "$work/mesh"; printf '\nextensionProviders:\n%s\n' "$entry"; } >"$work/new" ;;
*)
	# One more item at the head of the list, indented as the others are.
	rest=$(sed -n '/^extensionProviders:/,$p' "$work/mesh")
	indent=$(sed -n '2,$s/^\( *\)- .*/\1/p' <<<"$rest" | head -n 1)
	if [[ ${rest%%$'\n'*} =~ ^extensionProviders:[[:space:]]*(\[\])?[[:space:]]*$ ]]; then
		{
			sed '/^extensionProviders:/,$d' "$work/mesh"
			echo extensionProviders:
			sed "s/^/$indent/" <<<"$entry"
			sed '1d' <<<"$rest"
		} >"$work/new"
	else
		echo "extensionProviders of ConfigMap $map is written on one line: add the entry of mesh-provider.yaml by hand" >&2
		exit 1
	fi
	;;
esac
{ printf 'data:\n  mesh: |\n'; sed 's/^/    /' "$work/new"; } >"$work/patch.yaml"
kubectl -n istio-system patch configmap "$map" --type merge --patch-file "$work/patch.yaml"
