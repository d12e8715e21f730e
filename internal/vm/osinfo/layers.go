package osinfo

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxFiles bounds the files of one layer; the database of 2022 has 1,100.
const maxFiles = 50_000

// Dirs returns the folders that libosinfo reads, in its order: the system's,
// the host's own and the user's; what a later one says replaces, file by file,
// what an earlier one says. OSINFO_SYSTEM_DIR, OSINFO_LOCAL_DIR and
// OSINFO_USER_DIR name others. A folder need not exist.
func Dirs() []string {
	var dirs []string
	if d := os.Getenv("OSINFO_SYSTEM_DIR"); d != "" {
		dirs = append(dirs, d)
	} else {
		dirs = append(dirs, "/usr/share/osinfo", "/usr/local/share/osinfo")
	}
	local := os.Getenv("OSINFO_LOCAL_DIR")
	if local == "" {
		local = "/etc/osinfo"
	}
	dirs = append(dirs, local)
	if d := os.Getenv("OSINFO_USER_DIR"); d != "" {
		return append(dirs, d)
	}
	if config, err := os.UserConfigDir(); err == nil {
		dirs = append(dirs, filepath.Join(config, "osinfo"))
	}
	return dirs
}

// files are the documents that describe one entity: the master replaces those
// of earlier layers, the extensions (NAME.d/*.xml) add to it.
type files struct {
	master     string
	extensions []string
}

func (f files) all() []string {
	if f.master == "" {
		return f.extensions
	}
	return append([]string{f.master}, f.extensions...)
}

// entityKey is where the entity of that id must lie, below a layer and
// without .xml: "os/debian.org/debian-12" for http://debian.org/debian/12.
func entityKey(kind, id string) string {
	id = strings.TrimPrefix(id, "http://")
	host, rest, _ := strings.Cut(id, "/")
	rest = strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '-', r == '.', r == '_':
			return r
		}
		return '-'
	}, rest)
	return kind + "/" + host + "/" + rest
}

// readLayers finds the documents of one kind ("os", "device") in the layers.
// What cannot be read is left out and reported.
func readLayers(dirs []string, kind string) (found map[string]files, problems []error) {
	found = map[string]files{}
	for _, dir := range dirs {
		layer := map[string]files{}
		if err := readLayer(dir, kind, layer); err != nil {
			problems = append(problems, err)
		}
		for key, f := range layer {
			if f.master == "" {
				f = files{found[key].master, slices.Concat(found[key].extensions, f.extensions)}
			}
			found[key] = f
		}
	}
	return found, problems
}

// readLayer adds the documents of dir/kind/HOST/NAME.xml and
// dir/kind/HOST/NAME.d/*.xml, in the order of their names.
func readLayer(dir, kind string, layer map[string]files) error {
	hosts, err := os.ReadDir(filepath.Join(dir, kind))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("osinfo: %w", err)
	}
	count := 0
	for _, host := range hosts {
		base := filepath.Join(dir, kind, host.Name())
		if !isDir(base, host) {
			continue
		}
		entries, err := os.ReadDir(base)
		if err != nil {
			return fmt.Errorf("osinfo: %w", err)
		}
		for _, e := range entries {
			if count++; count > maxFiles {
				return fmt.Errorf("osinfo: %s: more than %d files", dir, maxFiles)
			}
			path := filepath.Join(base, e.Name())
			if name, ok := strings.CutSuffix(e.Name(), ".xml"); ok {
				key := kind + "/" + host.Name() + "/" + name
				layer[key] = files{path, layer[key].extensions}
			} else if name, ok := strings.CutSuffix(e.Name(), ".d"); ok && isDir(path, e) {
				extensions, err := filepath.Glob(filepath.Join(escapeGlob(path), "*.xml")) // sorted
				if err != nil {
					return fmt.Errorf("osinfo: %s: %w", path, err)
				}
				key := kind + "/" + host.Name() + "/" + name
				layer[key] = files{layer[key].master, extensions}
			}
		}
	}
	return nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

func isDir(path string, e os.DirEntry) bool {
	if e.Type()&os.ModeSymlink == 0 {
		return e.IsDir()
	}
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// readDocument reads a file whole. Files that are not regular (a pipe would
// never end) and such as are too large are refused. There are 800 of them to
// read for some answers, so it makes no system call more than it must.
func readDocument(path string) (string, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	for err == syscall.EINTR {
		fd, err = syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = syscall.Close(fd) }()
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return "", fmt.Errorf("%s: not a regular file", path)
	case st.Size > maxDocument:
		return "", fmt.Errorf("%s: %d bytes, more than the limit of %d", path, st.Size, maxDocument)
	}
	buf := make([]byte, st.Size+1)
	for n := 0; ; {
		got, err := syscall.Read(fd, buf[n:])
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		}
		n += got
		switch {
		case n == len(buf):
			return "", fmt.Errorf("%s: grew while it was read", path)
		case got == 0 || n == len(buf)-1:
			return string(buf[:n]), nil
		}
	}
}
