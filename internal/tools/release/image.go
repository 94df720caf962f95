package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is who the service is in the image: deploy/Dockerfile's.
const user = 65532

// image writes an image of each Linux binary, named …-linux-ARCH, as deploy/Dockerfile makes
// it: the binary, the TLS roots of this machine, a folder to write to.
func (b build) image(out string, binaries []string) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, binary := range binaries {
		_, arch, is := strings.Cut(filepath.Base(binary), "-linux-")
		if !is {
			return fmt.Errorf("%s: isn't named …-linux-ARCH", binary)
		}
		image, err := b.imageOf(binary, arch)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	dir, err := os.MkdirTemp("", "mayfly-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	at, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := at.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": b.version})); err != nil {
		return err
	}
	return b.pack(dir, out)
}

func (b build) imageOf(binary, arch string) (v1.Image, error) {
	layer, err := b.layer(binary)
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: b.at}
	for i := range config.History {
		config.History[i].Created = v1.Time{Time: b.at}
	}
	config.Config = v1.Config{
		User: fmt.Sprintf("%d:%d", user, user), WorkingDir: "/var/lib/mayfly", StopSignal: "SIGTERM",
		Entrypoint: []string{"/usr/bin/mayfly"}, Cmd: []string{"serve", "--config", "/etc/mayfly/mayfly.yaml"},
		ExposedPorts: map[string]struct{}{"5555/tcp": {}, "5554/tcp": {}, "2112/tcp": {}},
		Volumes:      map[string]struct{}{"/var/lib/mayfly": {}},
		Healthcheck: &v1.HealthConfig{
			Test:     []string{"CMD", "/usr/bin/mayfly", "healthcheck", "--config", "/etc/mayfly/mayfly.yaml"},
			Interval: 10 * time.Second, Timeout: 5 * time.Second, StartPeriod: 10 * time.Second, Retries: 3,
		},
		Labels: map[string]string{
			"org.opencontainers.image.title": "mayfly", "org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.version": b.version, "org.opencontainers.image.revision": b.commit,
			"org.opencontainers.image.source": "https://github.com/mayfly-ca/mayfly",
		},
	}
	return mutate.ConfigFile(image, config)
}

// layer is the image's only one.
func (b build) layer(binary string) (v1.Layer, error) {
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	add := func(name, file string, mode int64, owner int) error {
		h := &tar.Header{Name: name, Mode: mode, ModTime: b.at, Uid: owner, Gid: owner, Typeflag: tar.TypeDir}
		var content []byte
		if file != "" {
			var err error
			if content, err = os.ReadFile(file); err != nil { // #nosec G304 -- of the release
				return err
			}
			h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	for _, entry := range []struct {
		name, file string
		mode       int64
		owner      int
	}{
		{"etc/", "", 0o755, 0},
		{"etc/ssl/", "", 0o755, 0},
		{"etc/ssl/certs/", "", 0o755, 0},
		{"etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt", 0o644, 0},
		{"usr/", "", 0o755, 0},
		{"usr/bin/", "", 0o755, 0},
		{"usr/bin/mayfly", binary, 0o755, 0},
		{"var/", "", 0o755, 0},
		{"var/lib/", "", 0o755, 0},
		{"var/lib/mayfly/", "", 0o700, user},
	} {
		if err := add(entry.name, entry.file, entry.mode, entry.owner); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text.Bytes())), nil }, tarball.WithMediaType(types.OCILayer))
}

// pack writes a folder's files as a tar.
func (b build) pack(dir, out string) (err error) {
	f, err := os.Create(out) // #nosec G304 -- of the release
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path) // #nosec G304 -- of the release
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, ModTime: b.at, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
