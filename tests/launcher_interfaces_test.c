/* Interfaces: addresses and subnets, this host, a captured tree, and what another host may tell. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher/interfaces.h"
#include "tests/t.h"

/* ---- addresses ------------------------------------------------------------------------------------------------------------------------------------------------ */

static struct launch_address address(const char *text, int prefix)
{
    struct launch_address a = {.prefix = prefix, .gid_index = -1};
    assert_true(launch_address_parse(text, &a));
    return a;
}

static bool shares(const char *a, int a_bits, const char *b, int b_bits)
{
    const struct launch_address x = address(a, a_bits), y = address(b, b_bits);
    const bool result = launch_address_share_subnet(&x, &y);
    assert_int_equal(result, launch_address_share_subnet(&y, &x));
    return result;
}

static void subnets(void **state)
{
    (void)state;
    assert_true(shares("10.0.0.1", 24, "10.0.0.2", 24));
    assert_false(shares("10.0.0.1", 24, "10.0.1.2", 24));
    assert_true(shares("10.0.0.1", 23, "10.0.1.2", 23));
    assert_true(shares("10.0.0.1", 16, "10.0.1.2", 24)); /* one contains the other */
    assert_true(shares("10.0.0.1", 31, "10.0.0.0", 31));
    assert_false(shares("10.0.0.1", 32, "10.0.0.2", 32));
    assert_true(shares("2001:db8::1", 64, "2001:db8::ffff:2", 64));
    assert_false(shares("2001:db8::1", 64, "2001:db8:0:1::1", 64));
    assert_true(shares("fe80::1", 64, "fe80::2", 64));
    assert_false(shares("fe80::1", 0, "2001:db8::1", 0));
    assert_false(shares("10.0.0.1", 0, "2001:db8::1", 0));
}

static void texts(void **state)
{
    (void)state;
    char text[LAUNCH_ADDRESS_TEXT];
    struct launch_address a = address("fe80::1", 64), b = address("10.0.0.1", 24);
    assert_string_equal(launch_address_text(&a, "enp1s0f0np0", text), "fe80::1%enp1s0f0np0");
    assert_string_equal(launch_address_text(&a, NULL, text), "fe80::1");
    assert_string_equal(launch_address_text(&b, "eth0", text), "10.0.0.1");
    assert_true(launch_address_compare(&b, &a) < 0 && launch_address_compare(&a, &a) == 0);
    static const char *const bad[] = {"", "10.0.0", "10.0.0.256", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "localhost", "10.0.0.1/24"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(launch_address_parse(bad[i], &a));
    struct sockaddr_storage s;
    assert_int_equal(launch_address_socket(&a, 7, 4711, &s), sizeof(struct sockaddr_in6));
    assert_int_equal(((const struct sockaddr_in6 *)(const void *)&s)->sin6_scope_id, 7);
    assert_int_equal(ntohs(((const struct sockaddr_in6 *)(const void *)&s)->sin6_port), 4711);
    assert_int_equal(launch_address_socket(&b, 7, 4711, &s), sizeof(struct sockaddr_in));
}

/* ---- this host ------------------------------------------------------------------------------------------------------------------------------------------------ */

static struct launch_interfaces *read_from(const char *root)
{
    struct launch_interfaces *in = calloc(1, sizeof *in);
    struct err e = {""};
    assert_non_null(in);
    T_OK(launch_interfaces_read(root, in, &e), &e);
    return in;
}

static void survives_json(const struct launch_interfaces *in)
{
    struct launch_interfaces *again = calloc(1, sizeof *again);
    char *json = launch_interfaces_to_json(in);
    struct err e = {""};
    assert_true(again && json);
    T_OK(launch_interfaces_from_json("test", json, strlen(json), again, &e), &e);
    assert_memory_equal(again, in, sizeof *in);
    free(json);
    free(again);
}

static void this_host(void **state)
{
    (void)state;
    struct launch_interfaces *in = read_from(NULL), *again = read_from(NULL);
    const struct launch_interface *lo = launch_interface_find(in, "lo");
    assert_non_null(lo);
    assert_int_equal(lo->medium, LAUNCH_LOOPBACK);
    assert_true(lo->is_up && lo->index > 0 && lo->mtu > 0 && lo->n_addresses >= 1);
    const struct launch_address own = address("127.0.0.1", 8);
    assert_non_null(launch_interface_address(lo, &own));
    assert_int_equal(launch_interface_address(lo, &own)->prefix, 8);
    assert_true(in->machine[0] && in->namespace_id);
    assert_true(launch_interfaces_same_machine(in, again));
    again->namespace_id++;
    assert_false(launch_interfaces_same_machine(in, again));
    for (int i = 1; i < in->n; i++)
        assert_true(in->list[i - 1].index < in->list[i].index);
    survives_json(in);
    free(in);
    free(again);
}

static void bytes_are_counted(void **state)
{
    (void)state;
    uint64_t tx[2], rx[2];
    struct err e = {""};
    T_OK(launch_interface_counters("lo", &tx[0], &rx[0], &e), &e);
    const struct launch_address own = address("127.0.0.1", 8);
    struct sockaddr_storage s;
    const socklen_t n = launch_address_socket(&own, 0, 9, &s);
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    static const char data[5000];
    assert_true(fd >= 0 && sendto(fd, data, sizeof data, 0, (struct sockaddr *)&s, n) == sizeof data);
    close(fd);
    T_OK(launch_interface_counters("lo", &tx[1], &rx[1], &e), &e);
    assert_true(tx[1] - tx[0] >= sizeof data && rx[1] - rx[0] >= sizeof data);
    t_expect_err_contains(ST_NOT_FOUND, launch_interface_counters("lo0", &tx[0], &rx[0], &e), &e, "no interface lo0");
}

/* ---- a captured tree -------------------------------------------------------------------------------------------------------------------------------------------- */

static void put(const char *file, const char *text)
{
    char path[1024];
    snprintf(path, sizeof path, "%s", t_path("spark/%s", file));
    for (size_t i = strlen(t_dir()); path[i]; i++)
        if (path[i] == '/' && i) {
            path[i] = 0;
            mkdir(path, 0755);
            path[i] = '/';
        }
    if (text)
        t_write_text(path, text);
}

static void put_link(const char *file, const char *target)
{
    put(file, NULL);
    assert_int_equal(symlink(target, t_path("spark/%s", file)), 0);
}

static void put_interface(const char *name, int index, int mtu, const char *speed, const char *carrier, const char *pci)
{
    char file[128], text[32];
#define PUT(text, ...) (snprintf(file, sizeof file, __VA_ARGS__), put(file, text))
    snprintf(text, sizeof text, "%d\n", index);
    PUT(text, "class/net/%s/ifindex", name);
    snprintf(text, sizeof text, "%d\n", mtu);
    PUT(text, "class/net/%s/mtu", name);
    PUT("0x1003\n", "class/net/%s/flags", name);
    PUT(speed, "class/net/%s/speed", name);
    PUT(carrier, "class/net/%s/carrier", name);
    if (pci) {
        snprintf(file, sizeof file, "class/net/%s/device", name);
        char target[64];
        snprintf(target, sizeof target, "../../../devices/%s", pci);
        snprintf(text, sizeof text, "devices/%.12s/vendor", pci);
        put(text, "0x15b3\n");
        put_link(file, target);
    }
}

static void put_rdma(const char *device, const char *interface, const char *cage, bool is_up)
{
    char file[128];
    PUT("a088:c203:0001:0000\n", "class/infiniband/%s/sys_image_guid", device);
    PUT(is_up ? "4: ACTIVE\n" : "1: DOWN\n", "class/infiniband/%s/ports/1/state", device);
    PUT(is_up ? "200 Gb/sec (4X HDR)\n" : "40 Gb/sec (4X QDR)\n", "class/infiniband/%s/ports/1/rate", device);
    PUT("Ethernet\n", "class/infiniband/%s/ports/1/link_layer", device);
    PUT("", "class/infiniband/%s/device/net/%s/mtu", device, interface);
    PUT(cage, "class/net/%s/phys_port_name", interface);
    PUT("a088c20300010000\n", "class/net/%s/phys_switch_id", interface);
}

static void put_gid(const char *device, int index, const char *gid, const char *type, const char *interface)
{
    char file[128];
    PUT(gid, "class/infiniband/%s/ports/1/gids/%d", device, index);
    PUT(type, "class/infiniband/%s/ports/1/gid_attrs/types/%d", device, index);
    PUT(interface, "class/infiniband/%s/ports/1/gid_attrs/ndevs/%d", device, index);
#undef PUT
}

static void a_spark(void **state)
{
    (void)state;
    put_interface("lo", 1, 65536, "", "1\n", NULL);
    put_interface("enp1s0f0np0", 2, 9000, "200000\n", "1\n", "0000:01:00.0");
    put_interface("enp1s0f1np1", 3, 1500, "-1\n", "0\n", "0000:01:00.1");
    put_interface("enP2p1s0f0np0", 4, 9000, "200000\n", "1\n", "0002:01:00.0");
    put_interface("wlP9s9", 5, 1500, "", "1\n", "0009:01:00.0");
    put("class/net/wlP9s9/phy80211/name", "phy0\n");
    put_interface("docker0", 6, 1500, "10000\n", "1\n", NULL);
    put("class/net/docker0/bridge/stp_state", "0\n");
    put_interface("veth1234", 7, 1500, "10000\n", "1\n", NULL);
    put("class/net/veth1234/brport/state", "3\n");
    put_link("class/net/docker0/lower_veth1234", "../veth1234");
    put_interface("vlan7", 8, 1500, "200000\n", "1\n", NULL);
    put_link("class/net/vlan7/lower_enp1s0f0np0", "../enp1s0f0np0");
    put_interface("silent", 9, 1500, "", "1\n", NULL); /* without an address */
    put("addresses", "lo 127.0.0.1/8\nenp1s0f0np0 10.0.0.1/24\nenp1s0f0np0 fe80::aa/64\nenP2p1s0f0np0 fe80::bb/64\nwlP9s9 192.168.1.7/24\ndocker0 172.17.0.1/16\nveth1234 fe80::cc/64\n"
                     "vlan7 10.7.0.1/24\n");
    put_rdma("rocep1s0f0", "enp1s0f0np0", "p0\n", true);
    put_rdma("rocep1s0f1", "enp1s0f1np1", "p1\n", false);
    put_rdma("roceP2p1s0f0", "enP2p1s0f0np0", "p0\n", true);
    put_gid("rocep1s0f0", 0, "fe80:0000:0000:0000:0000:0000:0000:00aa\n", "IB/RoCE v1\n", "enp1s0f0np0\n");
    put_gid("rocep1s0f0", 1, "fe80:0000:0000:0000:0000:0000:0000:00aa\n", "RoCE v2\n", "enp1s0f0np0\n");
    put_gid("rocep1s0f0", 2, "0000:0000:0000:0000:0000:ffff:0a00:0001\n", "IB/RoCE v1\n", "enp1s0f0np0\n");
    put_gid("rocep1s0f0", 3, "0000:0000:0000:0000:0000:0000:0000:0000\n", "", "");
    put_gid("rocep1s0f0", 5, "0000:0000:0000:0000:0000:ffff:0a00:0001\n", "RoCE v2\n", "enp1s0f0np0\n"); /* it drifted */
    put_gid("roceP2p1s0f0", 1, "fe80:0000:0000:0000:a288:c2ff:fe03:0001\n", "RoCE v2\n", "enP2p1s0f0np0\n"); /* made of the hardware address */

    struct launch_interfaces *in = read_from(t_path("spark"));
    assert_int_equal(in->n, 7);
    assert_null(launch_interface_find(in, "veth1234")); /* talks for docker0 */
    assert_null(launch_interface_find(in, "silent"));
    const struct launch_interface *i = launch_interface_find(in, "enp1s0f0np0");
    assert_non_null(i);
    assert_int_equal(i->medium, LAUNCH_WIRE);
    assert_int_equal(i->index, 2);
    assert_int_equal(i->mtu, 9000);
    assert_int_equal(i->speed_mbit, 200000);
    assert_true(i->is_up && i->has_carrier);
    assert_string_equal(i->cage, "p0");
    assert_string_equal(i->switch_id, "a088c20300010000");
    assert_string_equal(i->pci, "0000:01:00.0");
    assert_int_equal(i->n_addresses, 2);
    assert_int_equal(i->addresses[0].gid_index, 5); /* IPv4, RoCE v2 */
    assert_int_equal(i->addresses[1].gid_index, 1);
    i = launch_interface_find(in, "enp1s0f1np1"); /* down, but it has an RDMA port that somebody may ask for */
    assert_true(i && !i->has_carrier && i->speed_mbit == -1);
    assert_int_equal(launch_interface_find(in, "enP2p1s0f0np0")->addresses[0].gid_index, 1);
    assert_int_equal(launch_interface_find(in, "wlP9s9")->medium, LAUNCH_WIRELESS);
    assert_int_equal(launch_interface_find(in, "docker0")->medium, LAUNCH_VIRTUAL);
    assert_int_equal(launch_interface_find(in, "vlan7")->medium, LAUNCH_WIRE);
    assert_int_equal(in->n_rdma, 3);
    const struct launch_rdma *r = launch_interface_rdma(in, "enp1s0f0np0");
    assert_true(r && r->is_active && r->gbit == 200 && r->port == 1 && !r->is_infiniband);
    assert_string_equal(r->state, "ACTIVE");
    assert_true(launch_interface_are_twins(in, "enp1s0f0np0", "enP2p1s0f0np0"));
    assert_false(launch_interface_are_twins(in, "enp1s0f0np0", "enp1s0f1np1"));
    assert_false(launch_interface_are_twins(in, "enp1s0f0np0", "enp1s0f0np0"));
    assert_false(launch_interface_are_twins(in, "enp1s0f0np0", "wlP9s9"));
    assert_null(launch_interface_rdma(in, "wlP9s9"));
    survives_json(in);

    struct err e = {""};
    put("addresses", "enp1s0f0np0 10.0.0.1/33\n");
    t_expect_err_contains(ST_INVALID, launch_interfaces_read(t_path("spark"), in, &e), &e, "addresses:1: wants lines");
    t_expect_err_contains(ST_IO, launch_interfaces_read(t_path("nowhere"), in, &e), &e, "nowhere");
    free(in);
}

/* ---- what another host tells ------------------------------------------------------------------------------------------------------------------------------------- */

#define INTERFACE "{\"name\": \"eth0\", \"index\": 2, \"medium\": \"wire\", \"up\": true, \"carrier\": true, \"mtu\": 1500, \"speed_mbit\": 1000, \"cage\": \"\", \"switch\": \"\", \"pci\": \"\", \"addresses\": " \
                  "[{\"address\": \"10.0.0.1\", \"prefix\": 24, \"gid\": -1}]}"
#define RDMA "{\"device\": \"mlx5_0\", \"port\": 1, \"interface\": \"eth0\", \"adapter\": \"1\", \"cage\": \"p0\", \"state\": \"ACTIVE\", \"active\": true, \"infiniband\": false, \"gbit\": 200.0, \"problem\": \"a b\"}"
#define HOST "{\"machine\": \"m\", \"namespace\": 1, \"rdma_problem\": \"\", \"interfaces\": [" INTERFACE "], \"rdma\": [" RDMA "]}"

static void foreign_text_is_checked(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
    } changes[] = {
        {"\"machine\": \"m\"", "\"machine\": 1"},
        {"\"machine\": \"m\", ", ""},
        {"\"machine\": \"m\"", "\"machine\": \"m\", \"more\": 1"},
        {"\"namespace\": 1", "\"namespace\": -1"},
        {"\"eth0\", \"index\"", "\"\", \"index\""},
        {"\"eth0\", \"index\"", "\"..\", \"index\""},
        {"\"eth0\", \"index\"", "\"a/b\", \"index\""},
        {"\"eth0\", \"index\"", "\"a,b\", \"index\""}, /* would be two names in a variable */
        {"\"eth0\", \"index\"", "\"a b\", \"index\""},
        {"\"eth0\", \"index\"", "\"\\u001b[2J\", \"index\""},
        {"\"eth0\", \"index\"", "\"0123456789abcdef\", \"index\""},
        {"\"index\": 2", "\"index\": 0"},
        {"\"index\": 2", "\"index\": 2147483648"},
        {"\"wire\"", "\"string\""},
        {"\"up\": true", "\"up\": 1"},
        {"\"mtu\": 1500", "\"mtu\": 0"},
        {"\"mtu\": 1500", "\"mtu\": 1500.5"},
        {"\"speed_mbit\": 1000", "\"speed_mbit\": -2"},
        {"10.0.0.1", "10.0.0"},
        {"10.0.0.1", "255.255.255.255"},
        {"\"prefix\": 24", "\"prefix\": 33"},
        {"\"gid\": -1", "\"gid\": 256"},
        {"\"gid\": -1", "\"gid\": -1, \"x\": 0"},
        {INTERFACE, INTERFACE ", " INTERFACE},
        {INTERFACE, "7"},
        {"[" RDMA "]", "{}"},
        {"\"mlx5_0\"", "\"\""},
        {"\"mlx5_0\"", "\"a;b\""},
        {"\"gbit\": 200.0", "\"gbit\": -1"},
        {"\"gbit\": 200.0", "\"gbit\": 1e300"},
        {"\"a b\"", "\"a\\nb\""},
        {"}]}", "}]} x"},
        {"}]}", "}]"},
    };
    struct launch_interfaces *in = calloc(1, sizeof *in);
    struct err e = {""};
    assert_non_null(in);
    T_OK(launch_interfaces_from_json("spark2", HOST, strlen(HOST), in, &e), &e);
    assert_string_equal(in->rdma[0].problem, "a b");
    struct launch_interfaces *before = malloc(sizeof *before);
    assert_non_null(before);
    *before = *in;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char text[4096];
        const char *at = strstr(HOST, changes[i].from);
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - HOST), HOST, changes[i].to, at + strlen(changes[i].from));
        const enum st st = launch_interfaces_from_json("spark2", text, strlen(text), in, &e);
        if (st != ST_INVALID)
            print_message("taken: %s\n", text);
        t_expect_err_contains(ST_INVALID, st, &e, "spark2");
    }
    assert_memory_equal(in, before, sizeof *in); /* outputs on success only */
    free(before);
    free(in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(subnets), cmocka_unit_test(texts), cmocka_unit_test(this_host), cmocka_unit_test(bytes_are_counted), cmocka_unit_test(a_spark), cmocka_unit_test(foreign_text_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
