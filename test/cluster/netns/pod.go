package netns

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Node is the address at which pods reach the network of the tests.
const Node = "10.0.0.1"

// A Pod is a network with one address, as a container runtime makes one: it has its own loopback, any of its ports is free, and it and the
// network of the tests reach each other.
type Pod struct {
	Addr netip.Addr

	network *os.File // its namespace
	link    string   // the end of its cable outside
}

// NewPod makes a pod with an address of 10.0.0.0/8, which is then no longer this machine's own. It lives until Close, and until all processes in
// it have ended.
func NewPod(ip netip.Addr) (*Pod, error) {
	p := &Pod{Addr: ip, link: "pod" + strings.ToLower(rand.Text()[:8])}
	// A thread that could not come back ends with its goroutine.
	err := onThread(func() error {
		outside, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer func() { _ = outside.Close() }()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("a network for a pod: %w", err)
		}
		if p.network, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err := p.inside(outside); err != nil {
			return err
		}
		if err := unix.Setns(int(outside.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return p.outside()
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pod %s: %w", ip, err), p.Close())
	}
	return p, nil
}

// Run calls f on a thread that is in the network of p, as are processes that f starts.
func (p *Pod) Run(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(p.network.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// Close cuts the cable: nobody reaches the address any more.
func (p *Pod) Close() error {
	var errs []error
	if link, err := net.InterfaceByName(p.link); err == nil {
		errs = append(errs, netlink(unix.RTM_DELLINK, 0, interfaceMessage(link.Index)))
	}
	if p.network != nil {
		errs = append(errs, p.network.Close())
	}
	return errors.Join(errs...)
}

// onThread runs f on a thread of its own, which nobody else gets afterwards.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		done <- f()
	}()
	return <-done
}

// inside gives the pod its loopback and its address, and lays the cable: everything else is at its other end.
func (p *Pod) inside(outside *os.File) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := address(fd, "lo", [4]byte{127, 0, 0, 1}, [4]byte{255}); err != nil {
		return err
	}
	peer := slices.Concat(interfaceMessage(0), attribute(unix.IFLA_IFNAME, []byte(p.link+"\x00")),
		attribute(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(outside.Fd())))) // #nosec G115 -- a small number
	const vethPeer = 1 // VETH_INFO_PEER of linux/veth.h
	if err := netlink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, slices.Concat(interfaceMessage(0),
		attribute(unix.IFLA_IFNAME, []byte("eth0\x00")),
		attribute(unix.IFLA_LINKINFO, slices.Concat(attribute(unix.IFLA_INFO_KIND, []byte("veth")), attribute(unix.IFLA_INFO_DATA, attribute(vethPeer, peer)))))); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := address(fd, "eth0", p.Addr.As4(), [4]byte{255, 255, 255, 255}); err != nil {
		return err
	}
	return route("eth0", unix.RT_TABLE_MAIN, netip.Prefix{}, p.Addr)
}

// outside leads to the pod, before the route that makes all of 10.0.0.0/8 this machine's own.
func (p *Pod) outside() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := up(fd, p.link); err != nil {
		return err
	}
	return route(p.link, unix.RT_TABLE_LOCAL, netip.PrefixFrom(p.Addr, 32), netip.MustParseAddr(Node))
}

// route leads to a network by an interface, from an address. The zero network is everything.
func route(name string, table byte, to netip.Prefix, from netip.Addr) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	message := unix.RtMsg{Family: unix.AF_INET, Table: table, Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_UNICAST}
	var attributes []byte
	if to.IsValid() {
		message.Dst_len = byte(to.Bits()) // #nosec G115 -- at most 32
		attributes = attribute(unix.RTA_DST, to.Addr().AsSlice())
	}
	body, err := binary.Append(nil, binary.NativeEndian, message)
	if err != nil {
		return err
	}
	body = slices.Concat(body, attributes, attribute(unix.RTA_PREFSRC, from.AsSlice()),
		attribute(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(link.Index)))) // #nosec G115 -- a small number
	if err := netlink(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body); err != nil {
		return fmt.Errorf("route by %s: %w", name, err)
	}
	return nil
}

// interfaceMessage is the ifinfomsg of rtnetlink(7) for an interface, 0 for one that is to be.
func interfaceMessage(index int) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index)) // #nosec G115 -- a small number
	return b
}

// attribute is one rtattr of rtnetlink(7).
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value))) // #nosec G115 -- short
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// netlink sends one request of rtnetlink(7) and waits for its acknowledgement.
func netlink(kind, flags uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	message, err := binary.Append(nil, binary.NativeEndian, unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | flags, Seq: 1, // #nosec G115 -- short
	})
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, append(message, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink answers % x", answer[:n])
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 { // #nosec G115 -- as it is
		return unix.Errno(-code)
	}
	return nil
}
