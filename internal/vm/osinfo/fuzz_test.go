package osinfo

import (
	"bytes"
	"testing"
)

// Whatever the bytes: no panic, no more memory than the bounds, and a file
// that is found lies inside of the image. One target for the three readers, as
// each target costs CI its time: the first byte chooses.
func FuzzReaders(f *testing.F) {
	f.Add(append([]byte{0}, isoImage(Disc{VolumeID: "Debian 11.6.0 amd64 n", VolumeSize: 1 << 20, ElTorito: true})...))
	f.Add(append([]byte{0}, isoImage(Disc{VolumeID: "X", VolumeSize: 1 << 20})...))
	f.Add([]byte("\x01<?xml version='1.0'?><libosinfo><!-- c --><os id=\"http://x.org/a\"><name>&lt;&#x41;</name><media arch='all'><iso><volume-id>a</volume-id></iso></media></os></libosinfo>"))
	f.Add([]byte("\x01<a><![CDATA[x]]><b c='d'/></a>"))
	f.Add([]byte("\x02[general]\nfamily = Fedora\narch=x86_64\n[images-x86_64]\nkernel = k\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		kind, data := data[0], data[1:]
		switch kind % 3 {
		case 0:
			r, size := bytes.NewReader(data), int64(len(data))
			d, err := ReadDisc(r, size)
			if err != nil {
				return
			}
			if file, err := d.File(r, size, "casper/vmlinuz"); err == nil {
				if n, err := file.ReadAt(make([]byte, file.Size()), 0); int64(n) != file.Size() {
					t.Fatalf("%d bytes of a file of %d: %v", n, file.Size(), err)
				}
			}
			_ = Media{VolumeID: d.VolumeID, SystemID: d.SystemID}.matches(d)
		case 1:
			root, err := parseXML(string(data))
			if err != nil {
				return
			}
			r := &record{variants: map[string]string{}}
			r.merge(root)
			for i := range root.children {
				r.merge(&root.children[i])
			}
			o := Open(t.TempDir()).os(r)
			_ = Defaults(o, Request{Graphics: "spice"})
		default:
			_, _ = ParseTreeinfo(data)
		}
	})
}
