package durable

import (
	"cmp"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

const noFollow = 0

// OwnerOf knows nothing: files have access lists here, and no numbers.
func OwnerOf(os.FileInfo) (uid, gid, names int, known bool) { return 0, 0, 0, false }

// newFile makes a file. Where the mode lets in its owner alone, so does an access list that
// it has from its first moment: it would have the folder's.
func newFile(path string, mode os.FileMode) (*os.File, error) {
	if mode&0o077 != 0 {
		return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	}
	me, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, err
	}
	list, err := windows.SecurityDescriptorFromString("D:P(A;;FA;;;" + me.User.Sid.String() + ")")
	name, wrong := windows.UTF16PtrFromString(path)
	if err := cmp.Or(err, wrong); err != nil {
		return nil, err
	}
	by := windows.SecurityAttributes{SecurityDescriptor: list}
	by.Length = uint32(unsafe.Sizeof(by))
	file, err := windows.CreateFile(name, windows.GENERIC_WRITE, windows.FILE_SHARE_READ, &by, windows.CREATE_NEW, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(file), path), nil
}

// newTemp makes a file with a name of its own.
func newTemp(dir string, mode os.FileMode) (*os.File, error) {
	return newFile(filepath.Join(dir, TempPrefix+rand.Text()), mode)
}

// What follows only a CA that runs needs, and none runs here.

// Direct goes around the page cache by means of Unix.
type Direct struct{ *os.File }

// OpenDirect fails.
func OpenDirect(string, int, os.FileMode, int) (*Direct, error) { return nil, errors.ErrUnsupported }

// Put fails.
func (*Direct) Put(int64, ...[]byte) error { return errors.ErrUnsupported }

// Writable fails.
func Writable(string) error { return errors.ErrUnsupported }

// FreeBytes fails.
func FreeBytes(string) (uint64, error) { return 0, errors.ErrUnsupported }
