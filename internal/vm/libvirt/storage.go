package libvirt

import (
	"context"
	"fmt"
	"io"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Pool is a handle of a storage pool.
type Pool struct {
	conn *Conn
	pool golibvirt.StoragePool
}

// Name is the pool's name.
func (p *Pool) Name() string { return p.pool.Name }

// UUID is in its usual form.
func (p *Pool) UUID() string { return formatUUID(p.pool.UUID) }

func (p *Pool) op(what string) string { return fmt.Sprintf("%s storage pool %q", what, p.pool.Name) }

func (p *Pool) do(ctx context.Context, what string, f func(*golibvirt.Libvirt) error) error {
	return p.conn.do(ctx, p.op(what), f)
}

// poolOf makes the handle of a call's result.
func (c *Conn) poolOf(pool golibvirt.StoragePool, err error) (*Pool, error) {
	if err != nil {
		return nil, nameTaken(err)
	}
	return &Pool{c, pool}, nil
}

// Pools lists all storage pools.
func (c *Conn) Pools(ctx context.Context) ([]*Pool, error) {
	pools, err := call(ctx, c, "list storage pools", func(l *golibvirt.Libvirt) ([]golibvirt.StoragePool, error) {
		pools, _, err := l.ConnectListAllStoragePools(1, 0)
		return pools, err
	})
	if err != nil {
		return nil, err
	}
	all := make([]*Pool, len(pools))
	for i, p := range pools {
		all[i] = &Pool{c, p}
	}
	return all, nil
}

// LookupPool finds a pool by its name.
func (c *Conn) LookupPool(ctx context.Context, name string) (*Pool, error) {
	return c.poolOf(call(ctx, c, fmt.Sprintf("look up storage pool %q", name), func(l *golibvirt.Libvirt) (golibvirt.StoragePool, error) {
		return l.StoragePoolLookupByName(name)
	}))
}

// LookupPoolByTarget finds the active pool whose volumes lie in a folder.
func (c *Conn) LookupPoolByTarget(ctx context.Context, dir string) (*Pool, error) {
	return c.poolOf(call(ctx, c, "look up the storage pool of "+dir, func(l *golibvirt.Libvirt) (golibvirt.StoragePool, error) {
		return l.StoragePoolLookupByTargetPath(dir)
	}))
}

// DefinePool makes a pool persistent, or replaces the definition of the one
// with the same name and UUID.
func (c *Conn) DefinePool(ctx context.Context, xml string) (*Pool, error) {
	return c.poolOf(call(ctx, c, "define storage pool", func(l *golibvirt.Libvirt) (golibvirt.StoragePool, error) {
		return l.StoragePoolDefineXML(xml, 0)
	}))
}

// CreatePool starts a transient pool, which leaves no definition.
func (c *Conn) CreatePool(ctx context.Context, xml string) (*Pool, error) {
	return c.poolOf(call(ctx, c, "create storage pool", func(l *golibvirt.Libvirt) (golibvirt.StoragePool, error) {
		return l.StoragePoolCreateXML(xml, 0)
	}))
}

// XML returns the pool's document.
func (p *Pool) XML(ctx context.Context) (string, error) {
	return call(ctx, p.conn, p.op("document of"), func(l *golibvirt.Libvirt) (string, error) { return l.StoragePoolGetXMLDesc(p.pool, 0) })
}

// Active says whether the pool is started.
func (p *Pool) Active(ctx context.Context) (bool, error) {
	v, err := call(ctx, p.conn, p.op("state of"), func(l *golibvirt.Libvirt) (int32, error) { return l.StoragePoolIsActive(p.pool) })
	return v != 0, err
}

// PoolInfo is a pool's sizes in bytes.
type PoolInfo struct{ Capacity, Allocation, Available int64 }

// Info returns the pool's sizes.
func (p *Pool) Info(ctx context.Context) (PoolInfo, error) {
	return call(ctx, p.conn, p.op("size of"), func(l *golibvirt.Libvirt) (PoolInfo, error) {
		_, c, a, v, err := l.StoragePoolGetInfo(p.pool)
		return PoolInfo{int64(c), int64(a), int64(v)}, err
	})
}

// Build makes the pool's folder (or formats its device).
func (p *Pool) Build(ctx context.Context) error {
	return p.do(ctx, "build", func(l *golibvirt.Libvirt) error { return l.StoragePoolBuild(p.pool, 0) })
}

// Start starts the pool; with build it is built before.
func (p *Pool) Start(ctx context.Context, build bool) error {
	var flags golibvirt.StoragePoolCreateFlags
	if build {
		flags = golibvirt.StoragePoolCreateWithBuild
	}
	return p.do(ctx, "start", func(l *golibvirt.Libvirt) error { return l.StoragePoolCreate(p.pool, flags) })
}

// Destroy stops the pool; its volumes stay as they are.
func (p *Pool) Destroy(ctx context.Context) error {
	return p.do(ctx, "stop", func(l *golibvirt.Libvirt) error { return l.StoragePoolDestroy(p.pool) })
}

// Undefine forgets a stopped pool.
func (p *Pool) Undefine(ctx context.Context) error {
	return p.do(ctx, "undefine", func(l *golibvirt.Libvirt) error { return l.StoragePoolUndefine(p.pool) })
}

// Refresh has libvirt look at the pool's volumes again.
func (p *Pool) Refresh(ctx context.Context) error {
	return p.do(ctx, "refresh", func(l *golibvirt.Libvirt) error { return l.StoragePoolRefresh(p.pool, 0) })
}

// Autostart says whether the pool starts with the daemon.
func (p *Pool) Autostart(ctx context.Context) (bool, error) {
	n, err := call(ctx, p.conn, p.op("autostart of"), func(l *golibvirt.Libvirt) (int32, error) { return l.StoragePoolGetAutostart(p.pool) })
	return n != 0, err
}

// SetAutostart starts the pool with the daemon, or not.
func (p *Pool) SetAutostart(ctx context.Context, on bool) error {
	return p.do(ctx, "set autostart of", func(l *golibvirt.Libvirt) error { return l.StoragePoolSetAutostart(p.pool, bit(on)) })
}

// Volume is a handle of a storage volume.
type Volume struct {
	conn *Conn
	vol  golibvirt.StorageVol
}

// Name is the volume's name in its pool.
func (v *Volume) Name() string { return v.vol.Name }

// Pool is the name of the volume's pool.
func (v *Volume) Pool() string { return v.vol.Pool }

func (v *Volume) op(what string) string {
	return fmt.Sprintf("%s volume %q of storage pool %q", what, v.vol.Name, v.vol.Pool)
}

func (c *Conn) volume(vol golibvirt.StorageVol, err error) (*Volume, error) {
	if err != nil {
		return nil, nameTaken(err)
	}
	return &Volume{c, vol}, nil
}

// LookupVolume finds a volume by its path; only volumes of active pools are
// known.
func (c *Conn) LookupVolume(ctx context.Context, path string) (*Volume, error) {
	return c.volume(call(ctx, c, "look up volume "+path, func(l *golibvirt.Libvirt) (golibvirt.StorageVol, error) {
		return l.StorageVolLookupByPath(path)
	}))
}

// LookupVolume finds a volume by its name.
func (p *Pool) LookupVolume(ctx context.Context, name string) (*Volume, error) {
	return p.conn.volume(call(ctx, p.conn, fmt.Sprintf("look up volume %q of storage pool %q", name, p.pool.Name), func(l *golibvirt.Libvirt) (golibvirt.StorageVol, error) {
		return l.StorageVolLookupByName(p.pool, name)
	}))
}

// Volumes lists the pool's volumes.
func (p *Pool) Volumes(ctx context.Context) ([]*Volume, error) {
	vols, err := call(ctx, p.conn, p.op("list volumes of"), func(l *golibvirt.Libvirt) ([]golibvirt.StorageVol, error) {
		vols, _, err := l.StoragePoolListAllVolumes(p.pool, 1, 0)
		return vols, err
	})
	if err != nil {
		return nil, err
	}
	all := make([]*Volume, len(vols))
	for i, v := range vols {
		all[i] = &Volume{p.conn, v}
	}
	return all, nil
}

// CreateVolume makes a volume as a <volume> document says; [ErrExists] where
// the name or the file is there. With metadata, a qcow2 image's metadata is
// allocated.
func (p *Pool) CreateVolume(ctx context.Context, xml string, metadata bool) (*Volume, error) {
	var flags golibvirt.StorageVolCreateFlags
	if metadata {
		flags = golibvirt.StorageVolCreatePreallocMetadata
	}
	return p.conn.volume(call(ctx, p.conn, p.op("create a volume in"), func(l *golibvirt.Libvirt) (golibvirt.StorageVol, error) {
		return l.StorageVolCreateXML(p.pool, xml, flags)
	}))
}

// CloneVolume makes a volume as a <volume> document says with the content of
// another, which may be of another pool.
func (p *Pool) CloneVolume(ctx context.Context, xml string, from *Volume) (*Volume, error) {
	return p.conn.volume(call(ctx, p.conn, p.op("clone a volume in"), func(l *golibvirt.Libvirt) (golibvirt.StorageVol, error) {
		return l.StorageVolCreateXMLFrom(p.pool, xml, from.vol, 0)
	}))
}

// Path is where the volume lies on the daemon's host.
func (v *Volume) Path(ctx context.Context) (string, error) {
	return call(ctx, v.conn, v.op("path of"), func(l *golibvirt.Libvirt) (string, error) { return l.StorageVolGetPath(v.vol) })
}

// XML returns the volume's document.
func (v *Volume) XML(ctx context.Context) (string, error) {
	return call(ctx, v.conn, v.op("document of"), func(l *golibvirt.Libvirt) (string, error) { return l.StorageVolGetXMLDesc(v.vol, 0) })
}

// Upload writes size bytes of r to the volume from its beginning. Other
// content of the volume stays. It returns when libvirt has written them.
func (v *Volume) Upload(ctx context.Context, r io.Reader, size int64) error {
	if size < 0 {
		return fmt.Errorf("%s: %d bytes", v.op("upload to"), size)
	}
	exact := &exactly{r: r, left: size}
	_, err := alone(ctx, v.conn, v.op("upload to"), func(l *golibvirt.Libvirt) (struct{}, error) {
		return struct{}{}, l.StorageVolUpload(v.vol, exact, 0, uint64(size), 0)
	})
	return err
}

// exactly reads left bytes; a reader that ends before is an error, which
// aborts the stream.
type exactly struct {
	r    io.Reader
	left int64
}

// uploadChunk is what is sent at once: libvirt's own clients do not send more.
const uploadChunk = 256 << 10

func (e *exactly) Read(b []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), e.left, uploadChunk)]
	n, err := e.r.Read(b)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = fmt.Errorf("%d bytes are missing: %w", e.left, io.ErrUnexpectedEOF)
	} else if err == io.EOF {
		err = nil
	}
	return n, err
}

// Delete removes the volume and its file.
func (v *Volume) Delete(ctx context.Context) error {
	return v.conn.do(ctx, v.op("delete"), func(l *golibvirt.Libvirt) error { return l.StorageVolDelete(v.vol, 0) })
}
