package qemuimg

import (
	"strings"
	"time"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const infoSyntax = "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename"

func (t *tool) info(args []string) int {
	opts := image.InfoOptions{Secrets: &t.secrets}
	long := []getopt.Long{longHelp, longFormat, longOutput, {Name: "backing-chain", Val: optChain}, longObject, longImageOpts, longForce}
	if t.extended() {
		long = append(long, getopt.Long{Name: "usage", Val: optUsage})
	}
	c, status, done := t.parse(args, ":hf:U", long, func(o getopt.Option) bool {
		switch o.Val {
		case optChain:
			opts.Chain = true
		case optUsage:
			opts.Usage = true
		}
		return true
	})
	if done {
		return status
	}
	srcs, ok := t.images(c)
	if !ok {
		return exitFailed
	}
	mode, ok := t.outputFormat(c.output, c.hasOutput)
	if !ok {
		return exitFailed
	}
	opts.NoLock, opts.Untrusted = c.noLock, c.untrusted
	var list []any
	for i, src := range srcs {
		infos, ok := t.inspect(src, opts)
		if !ok {
			status = exitFailed
			continue
		}
		if mode == outputHuman {
			if i > 0 {
				t.printf("\n")
			}
			t.printInfos(infos)
			continue
		}
		list = append(list, infosJSON(infos, opts.Chain))
	}
	switch {
	case mode == outputHuman:
	case len(srcs) > 1:
		t.printf("%s\n", writeJSON(list))
	case len(list) == 1:
		t.printf("%s\n", writeJSON(list[0]))
	}
	return status
}

// inspect describes an image and its backing files if asked to, or says why it
// cannot.
func (t *tool) inspect(src source, opts image.InfoOptions) ([]image.Info, bool) {
	if !t.resolve(&src) {
		return nil, false
	}
	opts.Format = src.format
	infos, err := image.Inspect(t.ctx, src.name, opts)
	if err != nil {
		t.failOpen(err)
		return nil, false
	}
	return infos, true
}

func (t *tool) printInfos(infos []image.Info) {
	for i, info := range infos {
		if i > 0 {
			t.printf("\n")
		}
		t.printInfo(info)
	}
}

// infosJSON is an image, or the list of a chain.
func infosJSON(infos []image.Info, chain bool) any {
	if !chain {
		return infoJSON(infos[0])
	}
	list := make([]any, len(infos))
	for i, info := range infos {
		list[i] = infoJSON(info)
	}
	return list
}

// printInfo is the human form.
func (t *tool) printInfo(i image.Info) {
	t.printf("image: %s\nfile format: %s\nvirtual size: %s (%d bytes)\ndisk size: %s\n",
		i.Filename, i.Format, humanSize(i.VirtualSize), i.VirtualSize, humanSize(i.DiskSize))
	if i.Encrypted {
		t.printf("encrypted: yes\n")
	}
	if i.ClusterSize != 0 {
		t.printf("cluster_size: %d\n", i.ClusterSize)
	}
	if i.Dirty {
		t.printf("cleanly shut down: no\n")
	}
	if i.BackingFile != "" {
		t.printf("backing file: %s", i.BackingFile)
		if i.FullBackingFile != i.BackingFile {
			t.printf(" (actual path: %s)", i.FullBackingFile)
		}
		t.printf("\n")
		if i.BackingFormat != "" {
			t.printf("backing file format: %s\n", i.BackingFormat)
		}
	}
	if len(i.Snapshots) > 0 {
		t.printSnapshots(i.Snapshots)
	}
	if len(i.Specific) > 0 {
		t.printf("Format specific information:\n")
		t.printFields(i.Specific, "    ")
	}
	if len(i.Usage) > 0 {
		t.printf("Usage of the file:\n    %-30s%10s%12s%12s\n", "structure", "number", "length", "on disk")
		for _, u := range i.Usage {
			t.printf("    %-30s%10d%12s%12s\n", u.Name, u.Count, humanSize(u.Bytes), humanSize(u.DiskBytes))
		}
	}
}

// printSnapshots lists snapshots.
func (t *tool) printSnapshots(list []format.Snapshot) {
	t.printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
	for _, s := range list {
		t.printSnapshot(s)
	}
}

func (t *tool) printSnapshot(s format.Snapshot) {
	icount := ""
	if s.ICount >= 0 {
		icount = formatInt(s.ICount)
	}
	ms := s.VMClockNsec / 1e6
	clock := pad2(ms/3600000) + ":" + pad2(ms/60000%60) + ":" + pad2(ms/1000%60) + "." + pad3(ms%1000)
	t.printf("%s %s %8s%20s%13s%11s\n", padBytes(s.ID, 9), padBytes(s.Name, 16), humanSize(s.VMStateSize),
		time.Unix(int64(s.DateSec), 0).Format("2006-01-02 15:04:05"), clock, icount)
}

// padBytes fills s up with spaces to n bytes, as C's printf counts.
func padBytes(s string, n int) string { return s + strings.Repeat(" ", max(n-len(s), 0)) }

func (t *tool) printFields(fields []format.InfoField, indent string) {
	for _, f := range fields {
		t.printField(f.Name, f.Value, indent)
	}
}

// printField prints one field; the elements of a list are fields named by
// their number.
func (t *tool) printField(name string, value any, indent string) {
	switch v := value.(type) {
	case []format.InfoField:
		t.printf("%s%s:\n", indent, name)
		t.printFields(v, indent+"    ")
	case []any:
		t.printf("%s%s:\n", indent, name)
		for i, e := range v {
			t.printField("["+formatInt(int64(i))+"]", e, indent+"    ")
		}
	default:
		t.printf("%s%s: %v\n", indent, name, v)
	}
}

// infoJSON is the JSON form. The order of the keys is the stock tool's.
func infoJSON(i image.Info) object {
	var o object
	if i.BackingFile != "" && i.BackingFormat != "" {
		o.add("backing-filename-format", i.BackingFormat)
	}
	if len(i.Snapshots) > 0 {
		var list []any
		for _, s := range i.Snapshots {
			list = append(list, snapshotJSON(s))
		}
		o.add("snapshots", list)
	}
	o.add("virtual-size", i.VirtualSize)
	o.add("filename", i.Filename)
	if i.ClusterSize != 0 {
		o.add("cluster-size", i.ClusterSize)
	}
	o.add("format", i.Format)
	o.add("actual-size", i.DiskSize)
	if len(i.Specific) > 0 {
		o.add("format-specific", object{{"type", i.Format}, {"data", fieldsJSON(i.Specific)}})
	}
	if i.BackingFile != "" {
		o.add("full-backing-filename", i.FullBackingFile)
	}
	if i.Encrypted {
		o.add("encrypted", true)
	}
	if i.BackingFile != "" {
		o.add("backing-filename", i.BackingFile)
	}
	o.add("dirty-flag", i.Dirty)
	if len(i.Usage) > 0 {
		var list []any
		for _, u := range i.Usage {
			list = append(list, object{{"structure", u.Key}, {"number", u.Count}, {"length", u.Bytes}, {"disk-size", u.DiskBytes}})
		}
		o.add("usage", list)
	}
	return o
}

func snapshotJSON(s format.Snapshot) object {
	var o object
	if s.ICount >= 0 {
		o.add("icount", s.ICount)
	}
	o.add("vm-clock-nsec", int64(s.VMClockNsec%1e9))
	o.add("name", s.Name)
	o.add("date-sec", int64(s.DateSec))
	o.add("date-nsec", int64(s.DateNsec))
	o.add("vm-clock-sec", int64(s.VMClockNsec/1e9))
	o.add("id", s.ID)
	o.add("vm-state-size", s.VMStateSize)
	return o
}

func fieldsJSON(fields []format.InfoField) object {
	var o object
	for _, f := range fields {
		o.add(f.Key, fieldJSON(f.Value))
	}
	return o
}

func fieldJSON(value any) any {
	switch v := value.(type) {
	case []format.InfoField:
		return fieldsJSON(v)
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = fieldJSON(e)
		}
		return list
	}
	return value
}
