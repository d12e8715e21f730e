package qemuimg

// blockoptsTable is the part of the comparison that is about block options:
// those of raw, qcow2, file and of every node.
var blockoptsTable = []diffGroup{
	{name: "block options", fixtures: "create -q -f raw w.raw 1M;create -q -f qcow2 w.qcow2 1M;create -q -f qcow2 -o compat=0.10 w2.qcow2 1M;" +
		"create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2;create -q -f qcow2 -b a.raw -F raw overraw.qcow2;" +
		`create -q -f qcow2 -b json:{"driver":"raw","file":{"filename":"a.raw"}} -F raw overjson.qcow2;` +
		`create -q -f qcow2 -b json:{"driver":"raw","offset":1024,"file":{"filename":"a.raw"}} -F raw overwindow.qcow2`, cases: blockOptionsCases()},
}

// blockOptionsCases are many: for every option a good value and bad ones.
func blockOptionsCases() []diffCase {
	var cases []diffCase
	add := func(lines ...string) {
		for _, l := range lines {
			cases = append(cases, diffCase{lines: l})
		}
	}
	why := func(lines, why, has string) {
		cases = append(cases, diffCase{lines: lines, why: why, has: has})
	}
	// What a node is.
	for _, o := range []string{
		"driver=raw,file.driver=file,file.filename=a.raw", "driver=raw,file.filename=a.raw", "driver=qcow2,file.filename=a.raw",
		"file.filename=a.qcow2", "file.filename=a.raw", "filename=a.qcow2", "driver=file,filename=a.qcow2", "driver=raw,filename=a.raw",
		"driver=nope,file.filename=a.qcow2", "driver=qcow2", "driver=qcow2,file.driver=nope,file.filename=a.qcow2", "driver=qcow2,file.driver=file",
		"driver=file", "driver=", "foo=bar", "x", "driver=qcow2,file=a.qcow2", "driver=qcow2,file.filename=w,,x.qcow2",
		"driver=qcow2,driver=raw,file.filename=a.qcow2", "id=foo,driver=qcow2,file.filename=a.qcow2", "driver=qcow2,file.filename=nope",
		"driver=qcow2,file.driver=raw,file.file.filename=a.qcow2",
		"driver=qcow2,file.filename=a.qcow2,file.driver=raw",
	} {
		add("info --image-opts " + o)
	}
	add("info --image-opts -f raw driver=qcow2,file.filename=a.qcow2",
		"map --image-opts driver=qcow2,file.driver=raw,file.offset=0,file.file.filename=a.qcow2",
		"map --image-opts driver=raw,file.driver=qcow2,file.file.filename=a.qcow2",
		"map --image-opts driver=raw,file.driver=raw,file.offset=512k,file.file.filename=a.raw",
		"check --image-opts driver=qcow2,file.filename=a.qcow2; check --output=json --image-opts driver=qcow2,file.filename=a.qcow2",
		"check --image-opts driver=raw,file.filename=a.raw; check --image-opts driver=qcow2,file.filename=nope",
	)
	// raw.
	for _, o := range []string{
		"size=512k", "offset=512k", "size=512k,offset=512k", "offset=512", "size=0", "offset=100G", "size=100G", "offset=1M,size=100G", "size=1000", "size=abc",
		"offset=-1", "size=99999999999999999999", "size=1e3", "foo=1", "size=512k,foo=1", "backing.driver=raw", "lazy-refcounts=on", "encrypt.key-secret=x",
	} {
		add("info --image-opts driver=raw,"+o+",file.filename=a.raw", "map --output=json --image-opts driver=raw,"+o+",file.filename=a.raw")
	}
	// qcow2.
	for _, o := range []string{
		"lazy-refcounts=on", "lazy-refcounts=off", "lazy-refcounts=maybe", "pass-discard-request=on,pass-discard-snapshot=off,pass-discard-other=yes",
		"pass-discard-request=x", "pass-discard-foo=on", "cache-size=1M", "cache-size=abc", "cache-size=1M,l2-cache-size=2M",
		"cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M", "cache-size=1M,refcount-cache-size=2M", "l2-cache-size=4M,refcount-cache-size=1M",
		"l2-cache-entry-size=4k", "l2-cache-entry-size=1000", "l2-cache-entry-size=128k", "l2-cache-entry-size=256", "cache-clean-interval=0", "cache-clean-interval=900",
		"cache-clean-interval=x", "cache-clean-interval=9999999999", "overlap-check=none", "overlap-check=all", "overlap-check=foo",
		"overlap-check=all,overlap-check.template=none", "overlap-check=all,overlap-check.template=all",
		"overlap-check.template=none,overlap-check.main-header=on,overlap-check.active-l2=off", "overlap-check.main-header=x", "overlap-check.foo=on",
		"encrypt.format=luks", "foo=1", "backing=foo", "copy-on-read=on", "throttling.iops-total=1",
		"backing.driver=raw,backing.file.filename=a.raw", "data-file.filename=a.raw",
	} {
		add("info --image-opts driver=qcow2," + o + ",file.filename=a.qcow2")
	}
	add("info --image-opts driver=qcow2,lazy-refcounts=on,file.filename=w2.qcow2", "map --image-opts driver=qcow2,cache-size=0,file.filename=a.qcow2",
		"map --image-opts driver=qcow2,data-file.filename=a.raw,file.filename=a.qcow2", "map --image-opts driver=qcow2,foo=1,file.filename=a.qcow2")
	why("info --image-opts driver=qcow2,discard-no-unref=on,file.filename=a.qcow2", "discard-no-unref is an option of newer versions", "file format: qcow2")
	// Of every node, and of the file.
	for _, o := range []string{
		"node-name=foo", "node-name=1x", "node-name=", "read-only=on", "read-only=maybe", "auto-read-only=on", "auto-read-only=z", "discard=unmap", "discard=ignore", "discard=on", "discard=foo",
		"detect-zeroes=on", "detect-zeroes=unmap", "detect-zeroes=unmap,discard=unmap", "detect-zeroes=unmap,discard=ignore", "detect-zeroes=foo", "force-share=on", "force-share=x",
		"cache.direct=off", "cache.no-flush=on", "cache.direct=x", "cache.writeback=on", "cache.foo=on",
		"file.locking=on", "file.locking=off", "file.locking=auto", "file.locking=foo", "file.aio=threads", "file.aio=native", "file.aio=foo", "file.aio=io_uring",
		"file.pr-manager=x", "file.x-check-cache-dropped=on", "file.x-check-cache-dropped=2", "file.drop-cache=off", "file.read-only=on", "file.node-name=z", "file.discard=foo",
		"file.detect-zeroes=on", "file.detect-zeroes=2", "file.force-share=on", "file.aio-max-batch=5", "file.aio-max-batch=x", "file.foo=1", "file.offset=4", "file.cache.direct=maybe",
		"foo=1,file.foo=2", "discard=foo,file.locking=foo",
	} {
		add("info --image-opts driver=qcow2,file.filename=a.qcow2," + o)
	}
	add("info -U --image-opts driver=qcow2,file.filename=a.qcow2", "map -U --image-opts driver=qcow2,force-share=off,file.filename=a.qcow2",
		"map -U --image-opts driver=qcow2,force-share=on,file.filename=a.qcow2")
	// Names in JSON.
	for _, o := range []string{
		`{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}`, `{"driver":"qcow2","file.filename":"a.qcow2"}`, `{"file":{"filename":"a.qcow2"}}`,
		`{"filename":"a.qcow2"}`, `{"driver":"file","filename":"a.qcow2"}`, `{"driver":"raw","size":1024,"file":{"filename":"a.raw"}}`,
		`{"driver":"raw","size":"1k","file":{"filename":"a.raw"}}`, `{"driver":"raw","offset":512,"size":1024,"file":{"filename":"a.raw","driver":"file","locking":"off"}}`,
		`{"driver":"qcow2","lazy-refcounts":true,"file":{"filename":"a.qcow2"}}`, `{"driver":"qcow2","lazy-refcounts":"true","file":{"filename":"a.qcow2"}}`,
		`{"driver":"qcow2","lazy-refcounts":1,"file":{"filename":"a.qcow2"}}`, `{"driver":"qcow2","backing":null,"file":{"filename":"over.qcow2"}}`,
		`{"driver":"raw","size":-5,"file":{"filename":"a.raw"}}`, `{"driver":"raw","size":1.5,"file":{"filename":"a.raw"}}`, `{"driver":"raw","size":true,"file":{"filename":"a.raw"}}`,
		`{'driver':'raw','file':{'filename':'a.raw'}}`, `{"driver":"qcow2","file":"x"}`, `{"driver":1}`, ``, `{`, `[]`, `{"a":1,"a":2}`, `{}`, `{"driver":"nope"}`,
		`{"driver":"raw","file":{"driver":"file","filename":["a"]}}`, `{"driver":"raw","file":{"filename":"nope"}}`, `{"driver":"qcow2","file":{"driver":"file"}}`,
		`{"driver":"raw","file":{"filename":"a.raw","foo":1}}`, `{"driver":"raw","foo":{"bar":1},"file":{"filename":"a.raw"}}`, `{"driver":"qcow2","read-only":"x","file":{"filename":"a.qcow2"}}`,
	} {
		add("info json:"+o, "map json:"+o)
	}
	add(`info -f qcow2 json:{"driver":"raw","file":{"filename":"a.qcow2"}}`, `info -f raw json:{"driver":"qcow2","file":{"filename":"a.qcow2"}}`,
		`info -f raw json:{"file":{"filename":"a.qcow2"}}`, `check json:{"driver":"qcow2","file":{"filename":"a.qcow2"}}`,
		`compare json:{"driver":"qcow2","file":{"filename":"a.qcow2"}} json:{"driver":"raw","file":{"filename":"a.raw"}}`,
		`compare json:{"driver":"raw","size":1024,"file":{"filename":"a.raw"}} a.raw`)
	// Backing files named otherwise.
	for _, o := range []string{
		"", "backing=,", "backing.driver=raw,backing.file.filename=a.raw,", "backing.file.filename=a.raw,", "backing.driver=qcow2,", "backing.driver=raw,", "backing.driver=nope,",
		"backing.file.filename=nope,", "backing.foo=1,", "backing.node-name=x,", "backing.driver=raw,backing.offset=512,backing.file.filename=a.raw,", "backing.read-only=on,",
	} {
		add("map --image-opts driver=qcow2," + o + "file.filename=over.qcow2")
	}
	add("map --image-opts driver=qcow2,backing.driver=raw,backing.file.filename=a.raw,file.filename=w.qcow2",
		"convert -O raw --image-opts driver=qcow2,backing.driver=raw,backing.file.filename=a.raw,file.filename=w.qcow2 x",
		`map json:{"driver":"qcow2","backing":null,"file":{"filename":"over.qcow2"}}; map --output=json json:{"driver":"qcow2","backing":null,"file":{"filename":"over.qcow2"}}`,
		`map json:{"driver":"qcow2","backing":{"driver":"raw","file":{"filename":"a.raw"}},"file":{"filename":"over.qcow2"}}`,
		`convert -O raw json:{"driver":"qcow2","backing":null,"file":{"filename":"over.qcow2"}} x; convert -O raw over.qcow2 y`,
		"info overjson.qcow2; info --output=json overjson.qcow2; info --backing-chain overjson.qcow2; map overjson.qcow2",
		"info overwindow.qcow2; info --backing-chain overwindow.qcow2; map overwindow.qcow2; map --output=json overwindow.qcow2; convert -O raw overwindow.qcow2 x",
		`create -f qcow2 -b json:{"driver":"raw","file":{"filename":"a.raw"}} -F qcow2 x`, `create -f qcow2 -b json:{"file":{"filename":"a.raw"}} -F raw x; map x`,
		`create -f qcow2 -b json:{"driver":"raw","file":{"filename":"nope"}} -F raw x`, `create -f qcow2 -u -b json:{"driver":"raw","file":{"filename":"nope"}} -F raw x 1M; info x`,
	)
	// Changes through them.
	add("resize --image-opts driver=raw,size=512k,file.filename=w.raw 1M", "resize --image-opts --shrink driver=raw,offset=512k,file.filename=w.raw 256k",
		"resize --image-opts driver=raw,offset=512k,file.filename=w.raw 2M; info w.raw", "resize --image-opts driver=raw,read-only=on,file.filename=w.raw 3M",
		"resize --image-opts driver=qcow2,read-only=on,file.filename=w.qcow2 3M", "resize --image-opts driver=qcow2,auto-read-only=on,file.filename=w.qcow2 3M",
		"resize --image-opts driver=qcow2,file.read-only=on,file.filename=w.qcow2 4M", "resize --image-opts driver=qcow2,force-share=on,file.filename=w.qcow2 4M",
		"resize --image-opts file.filename=w.raw 2M", "check -r all --image-opts driver=qcow2,read-only=on,file.filename=w.qcow2",
		"check -r all --image-opts driver=qcow2,file.filename=w.qcow2", "snapshot --image-opts -c one driver=qcow2,file.filename=w.qcow2; compare w.qcow2 w.raw",
		"convert --image-opts driver=raw,size=512k,file.filename=a.raw -O qcow2 x; map x", "convert --image-opts driver=raw,offset=1M,file.filename=a.raw -O raw x",
		"convert --image-opts driver=raw,size=512k,file.filename=a.raw driver=qcow2,file.filename=a.qcow2 -O raw x",
		"convert -n --target-image-opts a.qcow2 driver=raw,file.filename=full", "create -q -f raw x 10M; convert -n --target-image-opts a.qcow2 driver=raw,file.filename=x; compare a.raw x",
		"create -q -f raw x 10M; convert -n --image-opts --target-image-opts driver=qcow2,file.filename=a.qcow2 driver=raw,file.filename=x; compare a.raw x",
		"create -q -f raw x 10M; convert -n --target-image-opts -O raw a.qcow2 driver=raw,file.filename=x",
		"create -q -f raw x 10M; convert -n --target-image-opts a.qcow2 driver=raw,offset=512k,file.filename=x",
		"create -q -f raw x 12M; convert -n --target-image-opts a.qcow2 driver=raw,offset=1M,size=10M,file.filename=x; compare --image-opts driver=raw,offset=1M,size=10M,file.filename=x driver=raw,file.filename=a.raw",
		"create -q -f raw x 10M; convert -n --target-image-opts a.qcow2 driver=raw,read-only=on,file.filename=x",
		"convert -n --target-image-opts a.qcow2 x", "convert --target-image-opts a.qcow2 driver=raw,file.filename=x", "convert -n --target-image-opts a.qcow2 driver=qcow2,file.filename=a.raw",
		"create -q -f qcow2 x 10M; convert -n --target-image-opts a.raw driver=qcow2,detect-zeroes=on,file.filename=x; compare a.raw x",
		"create -q -f qcow2 x 10M; convert -n -S 0 --target-image-opts a.raw driver=qcow2,detect-zeroes=unmap,discard=unmap,file.filename=x; compare a.raw x; map --output=json zero.qcow2",
		"create -q -f qcow2 x 10M; convert -n -S 0 --target-image-opts a.raw driver=qcow2,lazy-refcounts=on,discard=ignore,file.filename=x; compare a.raw x",
		"dd --image-opts if=driver=raw,file.filename=a.raw of=x bs=512 count=2", "dd --image-opts if=a.raw of=x bs=512 count=2",
		"compare --image-opts driver=raw,size=1M,file.filename=a.raw driver=qcow2,file.filename=a.qcow2",
	)
	return cases
}
