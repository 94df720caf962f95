package durable

import (
	"slices"
	"strings"
)

// OfTheSystem reports whether a name in a folder is one that file systems, desktops and
// platforms put there by themselves: lost+found of ext4, snapshots, the links that
// Kubernetes mounts by. Whoever looks for what a folder holds passes over them, and
// leaves them as they are.
func OfTheSystem(name string) bool {
	return strings.HasPrefix(name, "..") || strings.HasPrefix(name, ".nfs") || strings.HasPrefix(name, ".Trash") ||
		strings.HasPrefix(name, "._") || slices.Contains(systemNames, name)
}

var systemNames = []string{
	"lost+found", ".snapshot", ".snapshots", ".zfs", // ext4, NetApp, btrfs, ZFS
	".DS_Store", ".fseventsd", ".Spotlight-V100", ".TemporaryItems", // macOS
	"Thumbs.db", "desktop.ini", "System Volume Information", "$RECYCLE.BIN", "@eaDir", // Windows, Synology
}
