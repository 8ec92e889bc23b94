#!/bin/sh
# Build one release archive where it is not cached: make.sh nsq|kafka VERSION CACHE_FOLDER
#
# Makes in the cache folder the archive, its .sha256 and the same unpacked (for tests on this machine), packed as the
# project itself packs them: one top directory. The same sources and tools give the same bytes. Prints "made" if it did.
set -eu
what=$1 version=$2 cache=$3
here=$(cd "$(dirname "$0")" && pwd)

build_nsq() {
    cp "$here"/nsq/* "$1"
    # Static, so that it runs on any Debian.
    (
        cd "$1"
        for program in nsqd nsqadmin nsq_stat nsq_tail to_nsq; do
            CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags='-s -w' -o bin/ "github.com/nsqio/nsq/apps/$program"
        done
        rm go.mod go.sum tools.go
    )
}

build_kafka() {
    mvn --batch-mode --no-transfer-progress --quiet -Dstyle.color=never --file "$here/kafka/pom.xml" \
        dependency:copy-dependencies -Dkafka.version="$version" -DincludeScope=runtime -DoutputDirectory="$1/libs"
}

case $what in
    nsq) name=nsq-$version archive=$name.tar.gz ;;
    kafka) name=kafka_2.13-$version archive=$name.tgz ;;
    *) echo "unknown: $what" >&2; exit 2 ;;
esac

recipe=$(cat "$0" "$here/$what"/* | sha256sum | cut -d' ' -f1)
if [ "$(cat "$cache/$archive.recipe" 2>/dev/null)" = "$recipe" ] && [ -d "$cache/$name" ] &&
    (cd "$cache" && sha256sum --check --status "$archive.sha256"); then
    exit 0
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/$name"
"build_$what" "$work/$name" >&2
tar --directory="$work" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
    --create "$name" | gzip -n >"$work/$archive"

rm -rf "${cache:?}/$name"
mv "$work/$name" "$cache/$name"
mv "$work/$archive" "$cache/$archive"
(cd "$cache" && sha256sum "$archive" >"$archive.sha256")
# Last: what is here without it was left by a build that was ended.
echo "$recipe" >"$cache/$archive.recipe"
echo made
