#!/bin/sh
# Make the root file system of a local host: make-root.sh RELEASE PACKAGE,PACKAGE TARGET.tar
# The role's image tag is made from this text, so a change here makes a new image.
set -eu
release=$1 packages=$2 target=$3

work=$(mktemp -d "$(dirname "$target")/root.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Before any package is there: a cluster is made by whoever wants one, not by installing PostgreSQL.
cat >"$work/before.sh" <<'HOOK'
#!/bin/sh
set -eu
mkdir -p "$1/etc/postgresql-common"
echo 'create_main_cluster = false' >"$1/etc/postgresql-common/createcluster.conf"
HOOK

cat >"$work/after.sh" <<'HOOK'
#!/bin/sh
set -eu
root=$1
# These would act on the machine around the container (its kernel, its disk), fail there, or fetch packages unasked.
for unit in \
    systemd-modules-load.service systemd-sysctl.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount sys-fs-fuse-connections.mount fstrim.timer \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    systemd-ask-password-console.path systemd-ask-password-wall.path
do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# Installed for the one host that serves it; there the role enables it.
rm -f "$root/etc/systemd/system/multi-user.target.wants/postgresql.service"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRuntimeMaxUse=64M\n' \
    >"$root/etc/systemd/journald.conf.d/size.conf"
# Say that /etc and /var are up to date, or each first boot rebuilds caches for seconds.
touch "$root/etc/.updated" "$root/var/.updated"
# As on a real machine: systemd mounts a service's credentials in a helper's mount namespace, from where they reach the
# service only over a shared root. In a container systemd leaves the root as it finds it.
cat >"$root/etc/systemd/system/share-mounts.service" <<'UNIT'
[Unit]
Description=Share mounts with the namespaces of services
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mount --make-rshared /
UNIT
mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
ln -s ../share-mounts.service "$root/etc/systemd/system/sysinit.target.wants/share-mounts.service"
# Six hosts, six identities: systemd takes the container's.
: >"$root/etc/machine-id"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
HOOK
chmod +x "$work/before.sh" "$work/after.sh"

mmdebstrap --variant=minbase --include="$packages" --dpkgopt=force-confold \
    --essential-hook="$work/before.sh" --customize-hook="$work/after.sh" \
    "$release" "$work/root.tar" </dev/null
mv "$work/root.tar" "$target"
