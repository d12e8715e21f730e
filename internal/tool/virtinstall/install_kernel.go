package virtinstall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// injection is a file that is put into the initrd.
type injection struct {
	name string
	data func() ([]byte, error)
}

// maxInjection bounds one injected file: all of the initrd is in memory while
// the kernel unpacks it.
const maxInjection = 256 << 20

// prepareKernel plans the kernel and the initrd of the first run, and makes
// their arguments.
func (in *installation) prepareKernel(ctx context.Context) error {
	var src tree
	kernel, initrd := in.kernel, in.initrd
	if in.where != nil {
		if err := in.where.open(ctx); err != nil {
			return err
		}
		src, kernel, initrd = in.where.files, in.where.kernel, in.where.initrd
		if in.where.iso {
			if err := in.addMedium(in.where.url, ""); err != nil {
				return err
			}
		}
	} else if err := checkSources(ctx, kernel, initrd); err != nil {
		return err
	}
	k, err := in.stage(path.Base(kernel), func(ctx context.Context, w io.Writer) error { return fetch(ctx, src, kernel, w) })
	if err != nil {
		return err
	}
	k.title = path.Base(kernel)
	in.bootKernel = k.path
	if initrd != "" {
		f, err := in.stage(path.Base(initrd), func(ctx context.Context, w io.Writer) error { return in.writeInitrd(ctx, src, initrd, w) })
		if err != nil {
			return err
		}
		f.title = path.Base(initrd)
		in.bootInitrd = f.path
	} else if len(in.allInjections()) > 0 {
		return errors.New("--initrd-inject: there is no initrd to put it into; give --install initrd= too")
	}
	in.bootArgs = in.arguments()
	return nil
}

// checkSources reports a kernel or an initrd of --install that is missing.
func checkSources(ctx context.Context, names ...string) error {
	for _, name := range names {
		if name == "" {
			continue
		}
		r, err := openSource(ctx, nil, name)
		if err != nil {
			return fmt.Errorf("Couldn't acquire file %s: %w", name, err)
		}
		_ = r.Close()
	}
	return nil
}

// arguments is the kernel's command line: what the installation needs, and what
// was given.
func (in *installation) arguments() string {
	args := append([]string{}, in.cmdline...)
	if in.overwrite {
		return strings.Join(args, " ")
	}
	if in.unattended != nil && in.unattended.args != "" {
		args = append(args, in.unattended.args)
	}
	source := ""
	switch {
	case in.where == nil || in.where.iso:
	case isURL(in.where.url):
		source = in.where.url
	case in.unattended != nil:
		// The answers do not say where the packages are.
		for _, t := range in.g.os.Trees() {
			if t.Arch == "x86_64" && t.URL != "" {
				source = t.URL
				break
			}
		}
	}
	if source != "" {
		key := in.g.os.KernelURLArg()
		if in.where.known && key == "" {
			key = in.where.match.OS.KernelURLArg()
		}
		if key != "" && !strings.Contains(strings.Join(args, " "), key+"=") {
			args = append(args, key+"="+source)
		}
	}
	return strings.Join(args, " ")
}

// openSource opens a file of a tree; without a tree it is a path or a URL.
func openSource(ctx context.Context, src tree, name string) (io.ReadCloser, error) {
	switch {
	case src != nil:
		return src.open(ctx, name)
	case isURL(name):
		return get(ctx, name)
	}
	full, err := absolute(name)
	if err != nil {
		return nil, err
	}
	return dirTree(filepath.Dir(full)).open(ctx, filepath.Base(full))
}

// fetch copies a file.
func fetch(ctx context.Context, src tree, name string, w io.Writer) error {
	r, err := openSource(ctx, src, name)
	if err != nil {
		return fmt.Errorf("Couldn't acquire file %s: %w", name, err)
	}
	defer func() { _ = r.Close() }()
	_, err = io.Copy(w, contextReader{ctx, r})
	return err
}

// contextReader ends a copy with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// allInjections are the files of --initrd-inject and of --unattended.
func (in *installation) allInjections() []injection {
	var out []injection
	for _, name := range in.injections {
		out = append(out, injection{filepath.Base(name), func() ([]byte, error) { return readBounded(name, maxInjection) }})
	}
	if in.unattended != nil {
		out = append(out, in.unattended.injections...)
	}
	return out
}

// readBounded reads a file of at most max bytes.
func readBounded(name string, max int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s: it has more than %d bytes", name, max)
	}
	return data, nil
}

// writeInitrd copies the initrd, with what is injected as one more archive
// behind it: the kernel unpacks all of them over each other.
func (in *installation) writeInitrd(ctx context.Context, src tree, name string, w io.Writer) error {
	n := &counter{w: w}
	if err := fetch(ctx, src, name, n); err != nil {
		return err
	}
	files := in.allInjections()
	if len(files) == 0 {
		return nil
	}
	if pad := (4 - n.n%4) % 4; pad > 0 {
		if _, err := w.Write(make([]byte, pad)); err != nil {
			return err
		}
	}
	for i, f := range files {
		data, err := f.data()
		if err != nil {
			return err
		}
		if _, err := w.Write(cpioEntry(f.name, i+1, 0o100644, data)); err != nil {
			return err
		}
	}
	_, err := w.Write(cpioEntry("TRAILER!!!", 0, 0, nil))
	return err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// cpioEntry is one file of a "newc" archive (the kernel's
// driver-api/early-userspace/buffer-format), padded to four bytes.
func cpioEntry(name string, inode int, mode uint32, data []byte) []byte {
	var b bytes.Buffer
	links := 1
	if mode == 0 {
		links = 0
	}
	_, _ = fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	b.WriteString(name)
	b.WriteByte(0)
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	b.Write(data)
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	return b.Bytes()
}
